//! `kill -9` in the middle of everything (S16, I2, I11).
//!
//! A child process changes one side and synchronizes without end; it is killed after a while, a different
//! one each round. Whatever it was doing, each file is whole afterwards, none that was not deleted is gone, and
//! the next session brings the two sides together and leaves nothing of its own in the tree.
//! `SANDBOX_CASES` is the number of rounds, a thousand at most; `SANDBOX_SLOW` makes them a hundred.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::pair::{Pair, assert_clean, write};

const FILES: usize = 60;
const LENGTH: usize = 20_000;
const FOLDER: &str = "SANDBOX_SYNC_CRASH_FOLDER";

/// How many times to kill.
fn rounds() -> u64 {
    let cases = env::var("SANDBOX_CASES").ok();
    let usual = if env::var_os("SANDBOX_SLOW").is_some() {
        100
    } else {
        12
    };
    let asked = cases.and_then(|cases| cases.parse().ok());
    asked.unwrap_or(usual).min(1_000)
}

/// How long a round lets the child work: up to three cycles, in no order that a cycle could be in step with.
fn time_of(round: u64) -> Duration {
    Duration::from_micros(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
        .mul_f64(90_000.0 / 4_294_967_296.0)
}

/// Whether the child never deletes the file.
fn stays(number: usize) -> bool {
    !number.is_multiple_of(5)
}

fn name(number: usize) -> String {
    format!("d{}/f{number}", number % 7)
}

/// The child's work; without the variable that the parent sets there is none.
#[tokio::test]
async fn child() {
    let Some(folder) = env::var_os(FOLDER) else {
        return;
    };
    let pair = Pair::at(PathBuf::from(folder));
    let session = pair.start().await;
    println!("ready");
    for version in (0..=255u8).cycle() {
        for number in 0..FILES {
            // By rename, as editors do: a file that is torn is then torn by us.
            write(pair.outside("next"), vec![version; LENGTH]);
            fs::create_dir_all(pair.guest(&name(number)).parent().unwrap()).unwrap();
            fs::rename(pair.outside("next"), pair.guest(&name(number))).unwrap();
            if !stays(number) {
                fs::remove_file(pair.host(&name(number))).unwrap_or(());
            }
        }
        write(pair.guest(&format!("new/{version}")), [version]);
        drop(session.flush().await.unwrap());
    }
}

#[tokio::test]
async fn s16_a_killed_session_tears_nothing_and_the_next_one_finishes() {
    let pair = Pair::new();
    for number in 0..FILES {
        write(pair.host(&name(number)), vec![0; LENGTH]);
    }
    drop(pair.start().await.stop().await.unwrap());
    for round in 0..rounds() {
        killed_after(pair.folder(), time_of(round));
        for number in 0..FILES {
            let sides = [pair.host(&name(number)), pair.guest(&name(number))];
            let found = sides.map(|path| fs::read(path).ok());
            for bytes in found.iter().flatten() {
                let whole = bytes.len() == LENGTH && bytes.iter().all(|byte| *byte == bytes[0]);
                assert!(whole, "{} is torn", name(number));
            }
            let lost = stays(number) && found.iter().all(Option::is_none);
            assert!(!lost, "{} is lost", name(number));
        }
        let session = pair.start().await;
        assert_clean(&session.flush().await.unwrap());
        for number in (0..FILES).filter(|number| stays(*number)) {
            let sides = [pair.host(&name(number)), pair.guest(&name(number))];
            let [host, guest] = sides.map(|path| fs::read(path).unwrap());
            assert!(host == guest, "{} differs", name(number));
        }
        drop(session.stop().await.unwrap());
        let tops: Vec<_> = fs::read_dir(pair.host(""))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(
            tops.iter()
                .all(|name| !name.to_string_lossy().starts_with('.')),
            "{tops:?}"
        );
    }
}

fn killed_after(folder: &Path, time: Duration) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("ready"));
    assert!(ready, "the child never began");
    thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
}
