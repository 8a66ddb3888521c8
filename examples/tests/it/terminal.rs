//! An interactive shell in a terminal, with a person's keys.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::{Place, note_microvm, wait_until};

/// A terminal, and what came out of it.
pub(crate) struct Terminal {
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
    inner: OwnedFd,
}

impl Terminal {
    pub(crate) fn open(rows: u16, columns: u16) -> Self {
        let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outer).unwrap();
        unlockpt(&outer).unwrap();
        let name = ptsname(&outer, Vec::new()).unwrap();
        let inner = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let keys = File::from(outer);
        let mut reader = keys.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = screen.clone();
        // Ends with the terminal, which the test holds.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap().extend(&buffer[..count]);
            }
        });
        let terminal = Self {
            keys,
            screen,
            inner,
        };
        terminal.resize(rows, columns);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keys, size).unwrap();
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn shows(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).contains(text)
    }

    pub(crate) fn wait_for(&self, text: &str) {
        wait_until(&format!("{text:?} on the screen"), || self.shows(text));
    }

    /// Returns what a program has that runs in it.
    pub(crate) fn end(&self) -> OwnedFd {
        self.inner.try_clone().unwrap()
    }

    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.inner).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }
}

#[test]
fn a_shell_has_a_terminal_that_follows_the_window() {
    let place = Place::new();
    let mut terminal = Terminal::open(40, 100);
    assert!(terminal.is_cooked());
    // setsid makes it the controlling one, whose resizes the kernel tells of.
    let mut command = place.command("setsid");
    command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_sandbox")]);
    command.args(["run", "--rm", "--no-workspace", "shell"]);
    command
        .stdin(terminal.end())
        .stdout(terminal.end())
        .stderr(terminal.end());
    let mut child = command.spawn().unwrap();
    drop(command);

    // The quotes keep what is typed, which is echoed, apart from what is answered.
    terminal.press("tty; stty size; echo rea''dy\n");
    terminal.wait_for("ready");
    note_microvm("a_shell_has_a_terminal_that_follows_the_window");
    assert!(terminal.shows("/dev/pts/") && terminal.shows("40 100"));
    assert!(!terminal.is_cooked(), "keys go inside as they are");

    terminal.resize(31, 97);
    wait_until("the new size to be inside", || {
        terminal.press("stty size\n");
        thread::sleep(std::time::Duration::from_millis(200));
        terminal.shows("31 97")
    });

    // By exec: a dash that has forked and not executed yet passes over the signal, in itself and in its child.
    terminal.press("sh -c 'echo slee''ping; exec sleep 1000'\n");
    terminal.wait_for("sleeping");
    terminal.press("\u{3}");
    terminal.wait_for("^C");
    terminal.press("echo interr''upted: $?\n");
    terminal.wait_for("interrupted: 130");

    terminal.press("exit 9\n");
    let mut status = None;
    wait_until("the shell to end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(9));
    assert!(terminal.is_cooked(), "the terminal is as it was");
    place.assert_clean();
}
