//! A real Secret Service on a bus of its own: the test starts both, and itself again as their user.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use sandbox_base::ErrorKind;

use crate::credentials::{Credential, Credentials, Source};

/// Says what the child is to find.
const EXPECT: &str = "SANDBOX_TEST_KEYRING";
/// The test that runs on the bus.
const CHILD: &str = "credentials::keyring::tests::what_is_expected_is_found";
const VALUE: &str = "the-value-in-the-keyring";

/// Ends a program with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// A bus without any service file, so that nothing of this host is started on it.
fn bus(home: &Path) -> (Ended, String) {
    let config = home.join("bus.conf");
    let text = format!(
        "<busconfig><type>session</type><listen>unix:path={}/bus</listen><policy context=\"default\">\
         <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
         </policy></busconfig>",
        home.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut daemon = Command::new("dbus-daemon")
        .args(["--nofork", "--print-address=1", "--config-file"])
        .arg(&config)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    let stdout = daemon.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut address).unwrap();
    (Ended(daemon), address.trim().to_owned())
}

fn on_bus(program: impl AsRef<std::ffi::OsStr>, (home, address): (&Path, &str)) -> Command {
    let mut command = Command::new(program);
    for name in ["HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"] {
        command.env(name, home);
    }
    command.env("DBUS_SESSION_BUS_ADDRESS", address);
    command
}

/// Starts a program and gives it its whole input.
fn fed(mut command: Command, input: &str) -> Child {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    child
}

/// Runs the test below in a process whose session is the one of the bus.
fn look(place: (&Path, &str), expect: &str) {
    let mut command = on_bus(std::env::current_exe().unwrap(), place);
    command.args(["--exact", CHILD, "--ignored"]);
    let output = command.env(EXPECT, expect).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{expect}: {output:?}");
}

#[test]
fn a_value_is_read_from_a_secret_service() {
    for program in ["dbus-daemon", "gnome-keyring-daemon", "secret-tool"] {
        assert!(
            is_there(program),
            "there is no {program} on this machine: scripts/setup test"
        );
    }
    let home = tempfile::tempdir().unwrap();
    let (_bus, address) = bus(home.path());
    let place = (home.path(), address.as_str());
    look(place, "unsupported");

    let mut daemon = on_bus("gnome-keyring-daemon", place);
    daemon.args(["--foreground", "--unlock", "--components=secrets"]);
    // It says what it has opened, which is of no use here.
    daemon.stdout(Stdio::null()).stderr(Stdio::null());
    let _daemon = Ended(fed(daemon, "password of the keyring"));
    let store = |label: &str, more: &[&str]| {
        let mut command = on_bus("secret-tool", place);
        let label = format!("--label={label}");
        command.args(["store", &label, "service", "example.test", "username", "me"]);
        command.args(more);
        fed(command, &format!("{VALUE}\n")).wait().unwrap()
    };
    // The keyring takes a moment to appear on the bus, which starts nothing by itself.
    let tries = std::iter::repeat_with(|| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        store("one", &[])
    });
    assert!(tries.take(100).any(|status| status.success()));
    look(place, "found");
    assert!(store("two", &["other", "attribute"]).success());
    look(place, "ambiguous");
}

#[tokio::test]
#[ignore = "runs as a child of the test above, on its bus"]
async fn what_is_expected_is_found() {
    let Ok(expect) = std::env::var(EXPECT) else {
        return;
    };
    let entry = |account: &str| Source::Keyring {
        service: "example.test".to_owned(),
        account: account.to_owned(),
    };
    let kind = async |account| entry(account).load().await.map_err(|error| error.kind());
    match expect.as_str() {
        "unsupported" => assert_eq!(
            kind("me").await.unwrap_err(),
            ErrorKind::Unsupported,
            "{:?}",
            entry("me").load().await
        ),
        "ambiguous" => assert_eq!(kind("me").await.unwrap_err(), ErrorKind::Invalid),
        _ => {
            assert_eq!(kind("nobody").await.unwrap_err(), ErrorKind::NotFound);
            let credential = Credential::new("example", entry("me")).scrub();
            let credentials = Credentials::load([credential]).await.unwrap();
            credentials.reload("example").await.unwrap();
            let value = entry("me").load().await.unwrap();
            assert_eq!(value.expose(), VALUE.as_bytes());
        }
    }
}
