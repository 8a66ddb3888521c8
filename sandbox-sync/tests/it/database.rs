//! A database and its log are files like others: whole where their writer has let go of them, and apart where
//! they are ignored (S43).

use std::path::Path;
use std::process::Command;

use sandbox_sync::Lists;

use crate::pair::{Pair, assert_clean};

/// Runs a line of Python on an SQLite database and returns what it says. Its writer ends without a checkpoint,
/// so that the log holds what the database does not.
fn sqlite(database: &Path, line: &str) -> String {
    let program = format!(
        "import os, sqlite3, sys\n\
         db = sqlite3.connect(sys.argv[1])\n\
         db.execute('pragma journal_mode=wal')\n\
         {line}\n\
         db.commit(); sys.stdout.flush(); os._exit(0)"
    );
    let output = Command::new("python3")
        .args(["-c", &program])
        .arg(database)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const CREATE: &str = "db.execute('create table t (n)')";
const INSERT: &str = "db.executemany('insert into t values (?)', [(n,) for n in range(500)])";
const COUNT: &str = "print(db.execute('select count(*) from t').fetchone()[0], \
                     db.execute('pragma integrity_check').fetchone()[0])";

#[tokio::test]
async fn s43_a_database_whose_writer_has_stopped_arrives_with_its_log() {
    let pair = Pair::new();
    let [host, guest] = [pair.host("a.db"), pair.guest("a.db")];
    sqlite(&host, CREATE);
    let session = pair.start().await;
    for round in 1..=4 {
        let (here, there) = if round % 2 == 0 {
            (&host, &guest)
        } else {
            (&guest, &host)
        };
        sqlite(here, INSERT);
        assert!(here.with_extension("db-wal").metadata().unwrap().len() > 0);
        assert_clean(&session.flush().await.unwrap());
        assert_eq!(sqlite(there, COUNT), format!("{} ok", round * 500));
        assert_clean(&session.flush().await.unwrap());
    }
}

#[tokio::test]
async fn s43_a_database_that_is_ignored_is_each_sides_own() {
    let pair = Pair::new();
    let [host, guest] = [pair.host("a.db"), pair.guest("a.db")];
    sqlite(&host, CREATE);
    let lists = Lists::default().with_ignore("*.db").with_ignore("*.db-*");
    let session = pair
        .start_with(pair.options().with_lists(lists))
        .await
        .unwrap();
    assert!(!guest.exists());
    sqlite(&guest, CREATE);
    sqlite(&guest, INSERT);
    let report = session.flush().await.unwrap();
    assert!(report.is_quiet() && report.is_settled(), "{report:#?}");
    assert_eq!(sqlite(&host, COUNT), "0 ok");
    assert_eq!(sqlite(&guest, COUNT), "500 ok");
}
