//! `kill -9` in the middle of everything (S16, I2, I11).
//!
//! A child process changes one side and synchronizes without end; it is killed after a while, a different
//! one each round. Whatever it was doing, each file is whole afterwards, and the next session brings the
//! two sides together and leaves nothing of its own in the tree.

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
const ROUNDS: u64 = 12;

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
            if number % 5 == 0 {
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
    for round in 0..ROUNDS {
        killed_after(pair.folder(), Duration::from_millis(3 + round * 5));
        for number in 0..FILES {
            for path in [pair.host(&name(number)), pair.guest(&name(number))] {
                let bytes = fs::read(&path).unwrap_or(vec![0; LENGTH]);
                let whole = bytes.len() == LENGTH && bytes.iter().all(|byte| *byte == bytes[0]);
                assert!(whole, "{path:?} is torn");
            }
        }
        let session = pair.start().await;
        assert_clean(&session.flush().await.unwrap());
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
