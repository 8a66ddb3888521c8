//! What cannot be made is refused by kind, before or after anything was started, and leaves nothing.
//!
//! A build without its helper binary cannot be tried here: these tests need it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::vm::backend::qemu::{AccelerationPolicy, Qemu, QemuConfig};
use sandbox_core::{
    Dirs, ErrorKind, Host, Image, Limits, Sandbox, SandboxBuilder, Tmpfs, Workspace,
};

use crate::place::{Place, promptly};

async fn assert_refused(place: &Place, builder: SandboxBuilder, kind: ErrorKind, words: &str) {
    let error = promptly(builder.dirs(place.dirs.clone()).create())
        .await
        .expect_err(words);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    place.assert_empty().await;
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused() {
    let place = Place::new();
    let new = Sandbox::builder;
    let limits = |limits: Limits| new().limits(limits);
    let least = Limits::default();
    let cases = [
        (new().name("Bad Name"), "Bad Name"),
        (new().name(""), "a name has"),
        (new().env("", "x"), "no name of a variable"),
        (new().env("A=B", "x"), "A=B"),
        (new().env("A", "x\0"), "NUL"),
        (limits(least.clone().memory_mib(64)), "128"),
        (limits(least.clone().cpus(0)), "processors"),
        (limits(least.clone().cpus(65)), "processors"),
        (limits(least.clone().disk_mib(1)), "disk"),
        (limits(least.clone().disk_mib(u32::MAX)), "disk"),
        (new().tmpfs(Tmpfs::new("relative", 1)), "relative"),
        (new().tmpfs(Tmpfs::new("/", 1)), "below the root"),
        (new().tmpfs(Tmpfs::new("/x", 0)), "no room"),
        (new().workspace(Workspace::sync("/")), "no workspace"),
        (
            new().workspace(Workspace::sync("/tmp").at("/a/../..")),
            "/a/../..",
        ),
        (
            new()
                .workspace(Workspace::sync("/tmp").at("/w"))
                .workspace(Workspace::sync("/usr").at("/w/x")),
            "another workspace",
        ),
    ];
    for (builder, words) in cases {
        assert_refused(&place, builder, ErrorKind::Invalid, words).await;
    }
    let detached = new().name("Bad Name").detached();
    assert_refused(&place, detached, ErrorKind::Invalid, "Bad Name").await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let place = Place::new();
    let gone = place.folder.path().join("gone");
    let words = gone.to_str().unwrap().to_owned();
    let new = Sandbox::builder;
    let workspace = new().workspace(Workspace::sync(&gone));
    assert_refused(&place, workspace, ErrorKind::NotFound, &words).await;
    for image in [
        Image::directory(&gone),
        Image::tar(&gone),
        Image::oci_layout(&gone),
    ] {
        assert_refused(&place, new().image(image.clone()), ErrorKind::NotFound, "").await;
        assert_refused(
            &place,
            new().image(image).detached(),
            ErrorKind::NotFound,
            "",
        )
        .await;
    }
    let unknown = Sandbox::connect_in(place.dirs.clone(), "nobody").await;
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_workspace_that_cannot_be_read_is_refused() {
    let place = Place::new();
    let closed = place.folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read_dir(&closed).is_ok() {
        // Nothing is closed to root: a socket is what it cannot list, either.
        let socket = place.folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let builder = Sandbox::builder().workspace(Workspace::sync(&socket));
        assert_refused(&place, builder, ErrorKind::Io, "socket").await;
        return;
    }
    let builder = Sandbox::builder().workspace(Workspace::sync(&closed));
    assert_refused(&place, builder, ErrorKind::PermissionDenied, "closed").await;
}

#[tokio::test]
async fn a_boot_that_fails_leaves_nothing_behind() {
    let place = Place::new();
    let helper = helper(&place).await;
    let ending = hypervisor(&place, &helper, "ending", "echo broken >&2; exit 3");
    let builder = Sandbox::builder().hypervisor(ending);
    let builder = builder.dirs(place.dirs.clone()).name("again");
    let error = promptly(builder.create()).await.unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    place.assert_empty().await;
    // The name is free, and one that is dropped on the way goes as well.
    let hanging = hypervisor(&place, &helper, "hanging", "exec sleep 1000");
    let builder = Sandbox::builder().hypervisor(hanging);
    let create = builder.dirs(place.dirs.clone()).name("again").create();
    let waited = tokio::time::timeout(Duration::from_secs(2), create).await;
    assert!(waited.is_err(), "it never connects");
    place.assert_empty().await;
}

/// Makes a backend whose QEMU is a script.
fn hypervisor(place: &Place, helper: &Path, name: &str, script: &str) -> Arc<Qemu> {
    let program = place.folder.path().join(name);
    let text =
        format!("#!/bin/sh\nif [ \"$1\" = --version ]; then echo fake; exit; fi\n{script}\n");
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = QemuConfig::new(helper, &place.dirs.cache)
        .with_program(program)
        .with_acceleration(AccelerationPolicy::Emulate);
    Arc::new(Qemu::new(config))
}

/// Has the helper binary of this build unpacked into a cache of its own, and finds it there.
async fn helper(place: &Place) -> PathBuf {
    let dirs = Dirs::beneath(place.folder.path().join("other"));
    Host::detect_in(&dirs).await;
    let mut folders = std::fs::read_dir(dirs.cache.join("helper")).unwrap();
    folders
        .next()
        .unwrap()
        .unwrap()
        .path()
        .join("sandbox-helper")
}
