//! When the session stops and asks, and what it never touches.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use sandbox_sync::{ErrorKind, Lists, Mode, Resolution, Thresholds};

use crate::pair::{Pair, assert_clean, names, read, write};

#[tokio::test]
async fn s19_an_emptied_guest_halts_and_can_be_restored() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    write(pair.host("b"), "2");
    let session = pair.start().await;
    fs::remove_file(pair.guest("a")).unwrap();
    fs::remove_file(pair.guest("b")).unwrap();
    let error = session.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.to_string().contains("emptied in the guest"),
        "{error}"
    );
    assert_eq!(read(pair.host("a")), "1");
    let report = session.resume(Resolution::Restore).await.unwrap();
    assert_clean(&report);
    assert_eq!(read(pair.guest("b")), "2");
    assert!(session.flush().await.unwrap().is_quiet());
}

#[tokio::test]
async fn s19_an_emptied_host_halts_the_next_session_too() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    write(pair.host("b"), "2");
    drop(pair.start().await.stop().await.unwrap());
    fs::remove_file(pair.host("a")).unwrap();
    fs::remove_file(pair.host("b")).unwrap();
    let error = pair.start_with(pair.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(read(pair.guest("a")), "1");
    let meant = pair.options().with_resolution(Resolution::Propagate);
    let session = pair.start_with(meant).await.unwrap();
    assert_clean(session.initial());
    assert!(!pair.guest("a").exists());
}

#[tokio::test]
async fn s20_a_root_that_is_gone_or_replaced_halts() {
    for side in ["host", "guest"] {
        let pair = Pair::new();
        write(pair.host("a"), "1");
        let session = pair.start().await;
        let root = if side == "host" {
            pair.host("")
        } else {
            pair.guest("")
        };
        fs::rename(&root, pair.outside("moved")).unwrap();
        for replacement in ["nothing", "file", "link", "folder"] {
            match replacement {
                "file" => fs::write(root.to_str().unwrap().trim_end_matches('/'), "x").unwrap(),
                "link" => symlink(
                    pair.outside("moved"),
                    root.to_str().unwrap().trim_end_matches('/'),
                )
                .unwrap(),
                "folder" => fs::create_dir(&root).unwrap(),
                _ => {}
            }
            let error = session.flush().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{side} {replacement}");
            assert!(
                error
                    .to_string()
                    .contains(&format!("replaced in the {side}")),
                "{error}"
            );
            let path = root.to_str().unwrap().trim_end_matches('/').to_owned();
            drop(fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)));
        }
        fs::rename(pair.outside("moved"), &root).unwrap();
        assert_clean(&session.flush().await.unwrap());
    }
}

#[tokio::test]
async fn s21_mass_deletion_halts_and_small_ones_do_not() {
    let pair = Pair::new();
    for number in 0..80 {
        write(pair.host(&format!("src/{number}")), number.to_string());
    }
    write(pair.host("README"), "x");
    let session = pair.start().await;
    for number in 0..40 {
        fs::remove_file(pair.guest(&format!("src/{number}"))).unwrap();
    }
    assert_clean(&session.flush().await.unwrap());
    for number in 0..40 {
        write(pair.guest(&format!("src/{number}")), number.to_string());
    }
    assert_clean(&session.flush().await.unwrap());
    fs::remove_dir_all(pair.guest("src")).unwrap();
    let error = session.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("80 of 81 files"), "{error}");
    assert_eq!(read(pair.host("src/79")), "79");
    assert_clean(&session.resume(Resolution::Propagate).await.unwrap());
    assert!(!pair.host("src").exists());
    let thresholds = Thresholds::default().with_limits(0, 1);
    drop(session.stop().await.unwrap());
    let session = pair
        .start_with(pair.options().with_thresholds(thresholds))
        .await
        .unwrap();
    write(pair.guest("more"), "x");
    assert_clean(&session.flush().await.unwrap());
    fs::remove_file(pair.guest("more")).unwrap();
    assert_eq!(
        session.flush().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
}

#[tokio::test]
async fn a_removed_repository_halts() {
    let pair = Pair::new();
    for file in [
        ".git/HEAD",
        ".git/objects/aa/1",
        ".git/refs/heads/main",
        "a",
        "b",
        "c",
    ] {
        write(pair.host(file), file);
    }
    let session = pair.start().await;
    fs::remove_dir_all(pair.guest(".git")).unwrap();
    let error = session.flush().await.unwrap_err();
    assert!(error.to_string().contains("repository"), "{error}");
    assert_eq!(read(pair.host(".git/HEAD")), ".git/HEAD");
}

#[tokio::test]
async fn s55_a_second_session_on_a_root_is_refused() {
    let pair = Pair::new();
    let session = pair.start().await;
    let error = pair.start_with(pair.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    drop(session.stop().await.unwrap());
    drop(pair.start().await);
}

#[tokio::test]
async fn s30_links_that_lead_out_stay_on_their_side() {
    let pair = Pair::new();
    write(pair.outside("secret"), "s");
    symlink(pair.outside("secret"), pair.host("absolute")).unwrap();
    symlink("../outside/secret", pair.host("relative")).unwrap();
    write(pair.host("sub/file"), "x");
    let session = pair.start().await;
    assert_eq!(
        names(&session.initial().untracked, |u| &u.path),
        ["absolute", "relative"]
    );
    assert!(!pair.guest("absolute").is_symlink() && !pair.guest("relative").is_symlink());
    symlink("../../outside", pair.guest("sub/out")).unwrap();
    symlink("/etc", pair.guest("etc")).unwrap();
    symlink("sub/../..", pair.guest("chain")).unwrap();
    let report = session.flush().await.unwrap();
    assert!(report.is_quiet(), "{report:#?}");
    for link in ["sub/out", "etc", "chain"] {
        assert!(!pair.host(link).is_symlink(), "{link}");
    }
}

#[tokio::test]
async fn s32_a_folder_that_became_a_link_is_not_written_through() {
    let pair = Pair::new();
    write(pair.host("d/a"), "1");
    write(pair.outside("d/a"), "1");
    let session = pair.start().await;
    fs::remove_dir_all(pair.host("d")).unwrap();
    symlink(pair.outside("d"), pair.host("d")).unwrap();
    write(pair.guest("d/a"), "2");
    write(pair.guest("d/b"), "2");
    drop(session.flush().await.unwrap());
    assert_eq!(read(pair.outside("d/a")), "1");
    assert!(!pair.outside("d/b").exists());
}

#[tokio::test]
async fn s38_special_files_and_mode_bits_do_not_cross() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    let session = pair.start().await;
    let fifo = rustix_mkfifo(&pair.guest("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(pair.guest("socket")).unwrap();
    write(pair.guest("setuid"), "x");
    fs::set_permissions(pair.guest("setuid"), PermissionsExt::from_mode(0o6755)).unwrap();
    let report = session.flush().await.unwrap();
    assert_clean(&report);
    assert!(fifo, "mkfifo works here");
    assert_eq!(names(&report.to_host, |c| &c.path), ["setuid"]);
    assert_eq!(names(&report.untracked, |u| &u.path), ["fifo", "socket"]);
    assert_eq!(
        fs::metadata(pair.host("setuid"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );
}

fn rustix_mkfifo(path: &std::path::Path) -> bool {
    std::process::Command::new("mkfifo")
        .arg(path)
        .status()
        .unwrap()
        .success()
}

#[tokio::test]
async fn s38_a_setuid_program_of_the_host_does_not_stay_one_with_other_contents() {
    let pair = Pair::new();
    write(pair.host("tool"), "trusted");
    fs::set_permissions(pair.host("tool"), PermissionsExt::from_mode(0o6755)).unwrap();
    let session = pair.start().await;
    write(pair.guest("tool"), "evil");
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("tool")), "evil");
    let mode = fs::metadata(pair.host("tool"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[tokio::test]
async fn s39_a_hard_link_is_not_written_through() {
    let pair = Pair::new();
    write(pair.outside("shared"), "1");
    fs::hard_link(pair.outside("shared"), pair.host("inside")).unwrap();
    let session = pair.start().await;
    write(pair.guest("inside"), "2");
    fs::set_permissions(pair.guest("inside"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(read(pair.host("inside")), "2");
    assert_eq!(read(pair.outside("shared")), "1");
    assert_eq!(
        fs::metadata(pair.outside("shared"))
            .unwrap()
            .permissions()
            .mode()
            & 0o111,
        0
    );
}

#[tokio::test]
async fn s41_what_runs_unasked_never_arrives() {
    let pair = Pair::new();
    write(pair.host(".git/config"), "host");
    write(pair.host(".git/HEAD"), "ref: refs/heads/main");
    let session = pair.start().await;
    write(pair.guest(".git/config"), "[core] fsmonitor = evil");
    write(pair.guest(".git/hooks/pre-commit"), "evil");
    write(pair.guest(".envrc"), "evil");
    write(pair.guest("sub/.git"), "gitdir: ../evil");
    write(pair.guest("src/main.rs"), "fn main() {}");
    let report = session.flush().await.unwrap();
    let held = names(&report.held, |held| &held.path);
    assert_eq!(
        held,
        [
            ".envrc",
            ".git/config",
            ".git/hooks",
            ".git/hooks/pre-commit",
            "sub/.git"
        ]
    );
    assert_eq!(read(pair.host(".git/config")), "host");
    assert!(!pair.host(".git/hooks").exists() && !pair.host(".envrc").exists());
    assert!(!pair.host("sub/.git").exists());
    assert_eq!(read(pair.host("src/main.rs")), "fn main() {}");
    assert_eq!(
        read(pair.guest(".git/hooks/pre-commit")),
        "evil",
        "the guest keeps its own"
    );
}

#[tokio::test]
async fn masked_files_neither_enter_nor_come_back() {
    let pair = Pair::new();
    write(pair.host(".env"), "TOKEN=1");
    write(pair.host("keys/server.pem"), "k");
    write(pair.host("my.token"), "t");
    let lists = Lists::default().with_mask("*.token");
    let session = pair
        .start_with(pair.options().with_lists(lists))
        .await
        .unwrap();
    let untracked = names(&session.initial().untracked, |u| &u.path);
    assert_eq!(untracked, [".env", "keys/server.pem", "my.token"]);
    for path in [".env", "keys/server.pem", "my.token"] {
        assert!(!pair.guest(path).exists(), "{path}");
        write(pair.guest(path), "from the guest");
    }
    drop(session.flush().await.unwrap());
    assert_eq!(read(pair.host(".env")), "TOKEN=1");
    assert_eq!(read(pair.host("keys/server.pem")), "k");
}

#[tokio::test]
async fn ignored_paths_stay_apart_and_their_folders_stay() {
    let pair = Pair::new();
    write(pair.host("p/node_modules/x"), "host");
    write(pair.host("p/a"), "1");
    let lists = Lists::default().with_ignore("node_modules");
    let session = pair
        .start_with(pair.options().with_lists(lists))
        .await
        .unwrap();
    assert!(!pair.guest("p/node_modules").exists());
    write(pair.guest("p/node_modules/x"), "guest");
    fs::remove_file(pair.host("p/a")).unwrap();
    assert_clean(&session.flush().await.unwrap());
    fs::remove_dir_all(pair.guest("p")).unwrap();
    let report = session.flush().await.unwrap();
    assert!(report.is_quiet(), "{report:#?}");
    assert_eq!(read(pair.host("p/node_modules/x")), "host");
}

#[tokio::test]
async fn a_read_only_workspace_never_changes_the_host() {
    let pair = Pair::new();
    write(pair.host("a"), "1");
    let session = pair
        .start_with(pair.options().with_mode(Mode::ReadOnly))
        .await
        .unwrap();
    let second = Pair::new();
    drop(second);
    write(pair.guest("a"), "2");
    write(pair.guest("new"), "2");
    write(pair.host("b"), "1");
    let report = session.flush().await.unwrap();
    assert!(report.to_host.is_empty());
    assert_eq!(names(&report.held, |h| &h.path), ["a", "new"]);
    assert_eq!(read(pair.host("a")), "1");
    assert_eq!(read(pair.guest("b")), "1");
}

#[tokio::test]
async fn s12_names_are_bytes() {
    let pair = Pair::new();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9\xff");
    fs::write(pair.host("").join(name), "1").unwrap();
    fs::write(pair.host("line\nbreak"), "2").unwrap();
    let session = pair.start().await;
    assert_clean(session.initial());
    assert_eq!(fs::read(pair.guest("").join(name)).unwrap(), b"1");
    assert_eq!(read(pair.guest("line\nbreak")), "2");
}
