//! File systems that fold names (S10, S11), made and mounted for the test: what this machine has of them.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use sandbox_sync::{Conflict, Report, Side};
use tempfile::TempDir;

use crate::pair::{Pair, assert_clean, read, write};

/// A file system in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A folder with the attribute `F`: case and Unicode forms.
    Ext4,
    /// Case.
    Vfat,
    /// Case, wherever there is FUSE.
    Exfat,
}

impl Kind {
    /// Says what this user or machine lacks, if anything.
    fn lacking(self) -> Option<&'static str> {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let knows = |name: &str| {
            known
                .lines()
                .any(|line| line.ends_with(&format!("\t{name}")))
        };
        let has = |program: &str| {
            let there = |folder: &&str| Path::new(folder).join(program).exists();
            ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(there)
        };
        if !is_root() {
            return Some("mounting an image needs root");
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices");
        }
        match self {
            Self::Ext4 if !Path::new("/sys/fs/ext4/features/casefold").exists() => {
                Some("this kernel's ext4 folds no names (CONFIG_UNICODE)")
            }
            Self::Ext4 if !has("mkfs.ext4") => Some("there is no mkfs.ext4"),
            Self::Vfat if !knows("vfat") => Some("this kernel does not know it"),
            Self::Vfat if !has("mkfs.vfat") => Some("there is no mkfs.vfat"),
            Self::Exfat if !Path::new("/dev/fuse").exists() => Some("there is no /dev/fuse"),
            Self::Exfat if !has("mount.exfat-fuse") => Some("there is no mount.exfat-fuse"),
            Self::Exfat if !has("mkfs.exfat") => Some("there is no mkfs.exfat"),
            _ => None,
        }
    }

    fn folds_forms(self) -> bool {
        self == Self::Ext4
    }
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let users = status.lines().find(|line| line.starts_with("Uid:"));
    users.is_some_and(|users| users.split_whitespace().nth(2) == Some("0"))
}

/// A mounted one; unmounted and let go of in the end, whatever becomes of the test.
struct Disk {
    folder: TempDir,
    device: String,
    is_mounted: bool,
}

impl Disk {
    /// Makes one; `None`, with the reason printed, where this user or machine cannot.
    fn new(kind: Kind) -> Option<Self> {
        if let Some(lacking) = kind.lacking() {
            println!("skipped: {kind:?}: {lacking}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
        let device = run(Command::new("losetup").args(["--show", "-f"]).arg(&image));
        let mut disk = Self {
            folder,
            device: device.trim().to_owned(),
            is_mounted: false,
        };
        let at = disk.path("");
        fs::create_dir(&at).unwrap();
        let device = &disk.device;
        match kind {
            Kind::Ext4 => {
                run(Command::new("mkfs.ext4").args([
                    "-q",
                    "-O",
                    "casefold",
                    "-E",
                    "encoding=utf8",
                    device,
                ]));
                run(Command::new("mount").arg(device).arg(&at));
            }
            Kind::Vfat => {
                run(Command::new("mkfs.vfat").arg(device));
                run(Command::new("mount")
                    .args(["-o", "utf8,fmask=0133", device])
                    .arg(&at));
            }
            Kind::Exfat => {
                run(Command::new("mkfs.exfat").arg(device));
                run(Command::new("mount.exfat-fuse")
                    .args(["-o", "fmask=0133", device])
                    .arg(&at));
            }
        }
        disk.is_mounted = true;
        fs::create_dir(disk.path("root")).unwrap();
        if kind == Kind::Ext4 {
            run(Command::new("chattr").arg("+F").arg(disk.path("root")));
        }
        Some(disk)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("disk").join(path)
    }

    /// A pair of which this side lies here.
    fn pair(&self, side: Side) -> Pair {
        let folder = self.folder.path().join("pair");
        for name in ["host", "guest", "outside"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let name = if side == Side::Host { "host" } else { "guest" };
        fs::remove_dir(folder.join(name)).unwrap();
        symlink(self.path("root"), folder.join(name)).unwrap();
        Pair::at(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let succeeds = |program: &str, what: &[&str]| {
            let status = Command::new(program).args(what).status();
            status.is_ok_and(|status| status.success())
        };
        let at = self.path("");
        let at = at.to_str().unwrap();
        let mut done = true;
        if self.is_mounted {
            // The two halves end in their own time, and after a failure they may not.
            done = (0..200).any(|_| {
                let unmounted = succeeds("umount", &["--quiet", at]);
                if !unmounted {
                    thread::sleep(Duration::from_millis(25));
                }
                unmounted
            });
            if !done {
                succeeds("umount", &["--lazy", at]);
            }
        }
        done &= succeeds("losetup", &["-d", &self.device]);
        assert!(done || thread::panicking(), "unmounting {}", self.device);
    }
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let done = command.output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {errors}");
    String::from_utf8(done.stdout).unwrap()
}

/// All paths beneath a folder, folders with a `/` behind.
fn paths(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, beneath: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{beneath}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{path}/"), found);
                found.push(format!("{path}/"));
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&fs::canonicalize(folder).unwrap(), "", &mut found);
    found.sort();
    found
}

/// The conflicts of a report, each with the name that it collides with.
fn collisions(report: &Report) -> Vec<String> {
    let words = |conflict: &Conflict| {
        let with = conflict
            .collision
            .as_ref()
            .map(|collision| collision.with.to_string());
        format!("{}~{}", conflict.path, with.unwrap_or_default())
    };
    report.conflicts.iter().map(words).collect()
}

/// What holds where one side lies on such a file system.
async fn behaves(kind: Kind, side: Side) {
    let Some(disk) = Disk::new(kind) else { return };
    let pair = disk.pair(side);
    let mut roots = ["host", "guest"].map(|name| pair.folder().join(name));
    if side == Side::Guest {
        roots.reverse();
    }
    let [here, there] = roots;
    let both = [&here, &there];
    for (path, text) in [
        ("Read", "one"),
        ("Deep/Down/x", "x"),
        ("Deep/y", "y"),
        ("Both", "old"),
    ] {
        write(there.join(path), text);
    }
    let session = pair.start().await;
    assert_clean(session.initial());
    let all = |paths: &[&str]| {
        paths
            .iter()
            .map(|path| (*path).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&here), paths(&there));

    // A rename by case alone, of a file, of a folder with what is in it, and of what is changed as well.
    for (from, to) in [
        ("Read", "READ"),
        ("Deep/Down", "Deep/down"),
        ("Deep", "deep"),
        ("Both", "both"),
    ] {
        fs::rename(there.join(from), there.join(to)).unwrap();
    }
    write(there.join("both"), "new");
    write(there.join("deep/z"), "z");
    assert_clean(&session.flush().await.unwrap());
    let renamed = all(&[
        "READ",
        "both",
        "deep/",
        "deep/down/",
        "deep/down/x",
        "deep/y",
        "deep/z",
    ]);
    for root in both {
        assert_eq!(paths(root), renamed, "{}", root.display());
        assert_eq!(read(root.join("READ")), "one");
        assert_eq!(read(root.join("both")), "new");
        assert_eq!(read(root.join("deep/down/x")), "x");
    }
    let quiet = session.flush().await.unwrap();
    assert!(quiet.is_quiet() && quiet.is_settled(), "{quiet:#?}");

    // And from the side that folds. Not every file system renames by case alone.
    for (from, to) in [("READ", "Read"), ("deep", "DEEP")] {
        fs::rename(here.join(from), here.join("between")).unwrap();
        fs::rename(here.join("between"), here.join(to)).unwrap();
    }
    // By a name that it has not: what tells of changes may call it so. Not by way of FUSE, where each name has
    // contents of its own in memory.
    let other = if kind == Kind::Exfat { "both" } else { "BOTH" };
    fs::write(here.join(other), "newer").unwrap();
    assert_clean(&session.flush().await.unwrap());
    let renamed = all(&[
        "DEEP/",
        "DEEP/down/",
        "DEEP/down/x",
        "DEEP/y",
        "DEEP/z",
        "Read",
        "both",
    ]);
    for root in both {
        assert_eq!(paths(root), renamed, "{}", root.display());
        assert_eq!(read(root.join("both")), "newer", "{}", root.display());
    }

    // Two names that would be one file stay where they are.
    for (path, text) in [
        ("Two", "1"),
        ("two", "2"),
        ("Fold/a", "3"),
        ("fold/a", "4"),
        ("READ", "5"),
    ] {
        write(there.join(path), text);
    }
    let before = paths(&there);
    for _ in 0..2 {
        let report = session.flush().await.unwrap();
        assert_eq!(
            collisions(&report),
            ["Fold~fold", "READ~Read", "Two~two", "fold~Fold", "two~Two"]
        );
        assert!(
            report
                .conflicts
                .iter()
                .flat_map(|one| &one.collision)
                .all(|one| one.side == side)
        );
        assert!(
            report.is_quiet() && report.problems.is_empty(),
            "{report:#?}"
        );
        assert_eq!(paths(&here), renamed);
        assert_eq!(paths(&there), before);
    }
    assert_eq!(read(here.join("Read")), "one");
    for (from, to) in [("two", "other"), ("fold", "folder"), ("READ", "reading")] {
        fs::rename(there.join(from), there.join(to)).unwrap();
    }
    assert_clean(&session.flush().await.unwrap());
    assert_eq!(paths(&here), paths(&there));
    assert_eq!(read(here.join("Two")), "1");
    assert_eq!(read(here.join("folder/a")), "4");
    assert_eq!(read(here.join("Read")), "one");

    // The forms of Unicode: two files, or one.
    let [composed, decomposed] = ["\u{e9}", "e\u{301}"];
    write(there.join(composed), "6");
    write(there.join(decomposed), "7");
    let report = session.flush().await.unwrap();
    let collide = [
        format!("{decomposed}~{composed}"),
        format!("{composed}~{decomposed}"),
    ];
    match kind.folds_forms() {
        true => assert_eq!(collisions(&report), collide),
        false => assert_clean(&report),
    }
    fs::remove_file(there.join(composed)).unwrap();
    assert_clean(&session.flush().await.unwrap());
    if kind.folds_forms() {
        fs::rename(there.join(decomposed), there.join(composed)).unwrap();
        assert_clean(&session.flush().await.unwrap());
    }
    assert_eq!(paths(&here), paths(&there));
    assert_clean(&session.stop().await.unwrap());

    // Another session finds nothing to do, and nothing of ours lies about.
    let session = pair.start().await;
    assert!(session.initial().is_quiet() && session.initial().is_settled());
    session.stop().await.unwrap();
    assert_eq!(paths(&here), paths(&there));
    assert!(
        paths(&here)
            .iter()
            .all(|path| !path.contains("sandbox-sync"))
    );
}

#[tokio::test]
async fn s10_s11_names_on_a_host_with_ext4_that_folds() {
    behaves(Kind::Ext4, Side::Host).await;
}

#[tokio::test]
async fn s10_s11_names_in_a_guest_with_ext4_that_folds() {
    behaves(Kind::Ext4, Side::Guest).await;
}

#[tokio::test]
async fn s10_names_on_a_host_with_vfat() {
    behaves(Kind::Vfat, Side::Host).await;
}

#[tokio::test]
async fn s10_names_on_a_host_with_exfat() {
    behaves(Kind::Exfat, Side::Host).await;
}

#[tokio::test]
async fn s10_names_in_a_guest_with_exfat() {
    behaves(Kind::Exfat, Side::Guest).await;
}

const FOLDER: &str = "SANDBOX_SYNC_FOLDED_FOLDER";
const FILES: usize = 12;
const LENGTH: usize = 5_000;

/// A name in one of its two cases.
fn name(number: usize, upper: bool) -> String {
    match upper {
        true => format!("F{number}"),
        false => format!("f{number}"),
    }
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
        let upper = version % 2 == 0;
        for number in 0..FILES {
            for (folder, from) in [("d", !upper), ("D", !upper), ("d", upper), ("D", upper)] {
                let from = pair.guest(&format!("{folder}/{}", name(number, from)));
                let to = pair.guest(&format!("{folder}/{}", name(number, upper)));
                if fs::rename(&from, &to).is_ok() && number % 2 == 0 {
                    write(pair.outside("next"), vec![version; LENGTH]);
                    fs::rename(pair.outside("next"), to).unwrap();
                }
            }
        }
        let [from, to] = if upper { ["d", "D"] } else { ["D", "d"] };
        drop(fs::rename(pair.guest(from), pair.guest(to)));
        drop(session.flush().await.unwrap());
    }
}

/// Kills a session that renames by case alone, again and again.
async fn survives(kind: Kind) {
    let Some(disk) = Disk::new(kind) else { return };
    let pair = disk.pair(Side::Host);
    for number in 0..FILES {
        write(
            pair.host(&format!("D/{}", name(number, true))),
            vec![0; LENGTH],
        );
    }
    drop(pair.start().await.stop().await.unwrap());
    let rounds = if env::var_os("SANDBOX_SLOW").is_some() {
        60
    } else {
        8
    };
    for round in 0..rounds {
        killed_after(pair.folder(), Duration::from_millis(round * 37 % 200));
        // Where it takes two renames one file, or the folder, may be in staging.
        let is_there = |number| {
            let path = pair.host(&format!("d/{}", name(number, false)));
            match fs::read(path) {
                Ok(bytes) => {
                    let whole = bytes.len() == LENGTH && bytes.iter().all(|byte| *byte == bytes[0]);
                    assert!(whole, "{number} is torn");
                    true
                }
                Err(_) => false,
            }
        };
        let found = (0..FILES).filter(|number| is_there(*number)).count();
        assert!(
            found == FILES || kind == Kind::Ext4,
            "{found} files in round {round}"
        );

        let session = pair.start().await;
        assert_clean(&session.flush().await.unwrap());
        let left = |path: &String| !path.starts_with(".sandbox-sync-staging/");
        let host: Vec<_> = paths(&pair.host("")).into_iter().filter(left).collect();
        assert_eq!(host, paths(&pair.guest("")), "round {round}");
        let files = host.iter().filter(|path| !path.ends_with('/'));
        assert_eq!(files.clone().count(), FILES, "{host:?}");
        for path in files {
            let [one, other] =
                [pair.host(path), pair.guest(path)].map(|path| fs::read(path).unwrap());
            assert!(one == other, "{path} differs");
        }
        drop(session.stop().await.unwrap());
    }
}

fn killed_after(folder: &Path, time: Duration) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "folded::child", "--nocapture"])
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

#[tokio::test]
async fn s10_s16_a_rename_by_case_that_is_killed_on_exfat() {
    survives(Kind::Exfat).await;
}

#[tokio::test]
async fn s10_s16_a_rename_by_case_that_is_killed_on_ext4() {
    survives(Kind::Ext4).await;
}
