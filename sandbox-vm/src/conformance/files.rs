//! Files and folders, in and out.

use sandbox_base::frame::write_message;
use sandbox_base::{ErrorKind, frame::read_message};
use tokio::io::AsyncWriteExt;

use super::subject::{
    Subject, Verdict, ensure, failed, read_all, read_line, same, shell, take, text, until_empty,
};
use crate::Error;
use crate::agent::NewFile;
use crate::channel::protocol::{
    ExecControl, FileReply, FileRequest, MAX_MESSAGE, MAX_OPEN, Open, Reply,
};

fn failed_as<T>(what: &str, result: Result<T, Error>, wanted: ErrorKind) -> Verdict {
    match result {
        Ok(_) => Err(failed(format!("{what}: it worked"))),
        Err(error) => same(what, error.kind(), wanted),
    }
}

pub(super) async fn what_is_written_is_read(subject: &Subject) -> Verdict {
    let path = subject.path("new/folders/file");
    let contents: Vec<u8> = (0..700_000u32).map(|n| (n * 13 + n / 251) as u8).collect();
    let file = NewFile::at(path.as_bytes()).with_mode(0o750);
    subject.agent.write(file, &contents).await?;
    let read = subject.agent.read(path.as_bytes(), 1 << 20).await?;
    ensure(read == contents, || "other contents".into())?;
    let mode = subject.script(&format!("stat -c %a {path}")).await?;
    same("mode", mode, "750".into())?;
    // A file of the kernel's has contents and no size.
    let status = subject.agent.read(b"/proc/self/status", 1 << 20).await?;
    ensure(!status.is_empty(), || "/proc/self/status is empty".into())
}

pub(super) async fn a_file_is_replaced_whole(subject: &Subject) -> Verdict {
    let path = subject.path("replaced");
    for contents in [&b"first and long"[..], b"second", b""] {
        subject
            .agent
            .write(NewFile::at(path.as_bytes()), contents)
            .await?;
        let read = subject.agent.read(path.as_bytes(), 100).await?;
        same("contents", text(&read), text(contents))?;
    }
    Ok(())
}

pub(super) async fn half_a_file_changes_nothing(subject: &Subject) -> Verdict {
    let folder = subject.path("half");
    let path = format!("{folder}/file");
    subject
        .agent
        .write(NewFile::at(path.as_bytes()), b"old")
        .await?;
    let mut stream = subject.agent.raw().await?;
    let request = Open::File(FileRequest::Write {
        path: path.clone().into_bytes(),
        size: 1000,
        mode: 0o644,
        user: None,
    });
    write_message(&mut stream, &request, MAX_OPEN).await?;
    let begun: Reply<FileReply> = read_message(&mut stream, MAX_MESSAGE).await?;
    ensure(begun.is_ok(), || format!("{begun:?}"))?;
    stream.write_all(b"new").await?;
    stream.flush().await?;
    drop(stream);
    let others = format!("ls -A {folder} | grep -v '^file$'; true");
    until_empty(|| subject.script(&others)).await?;
    let read = subject.agent.read(path.as_bytes(), 100).await?;
    same("contents", text(&read), "old".into())
}

pub(super) async fn reading_fails_by_kind(subject: &Subject) -> Verdict {
    let agent = &subject.agent;
    for (path, wanted) in [
        ("/no/such/file", ErrorKind::NotFound),
        ("/etc", ErrorKind::Invalid),
        ("/dev/zero", ErrorKind::Invalid),
        ("etc/passwd", ErrorKind::Invalid),
        ("", ErrorKind::Invalid),
    ] {
        failed_as(path, agent.read(path.as_bytes(), 100).await, wanted)?;
    }
    let long = agent.read(b"/etc/passwd", 3).await;
    failed_as("a long file", long, ErrorKind::Exhausted)
}

pub(super) async fn writing_fails_by_kind(subject: &Subject) -> Verdict {
    let write = async |path: &str, user: Option<&str>| {
        let file = NewFile::at(path.as_bytes()).with_user(user);
        // More than a window: the refusal must come through while nobody listens to the contents.
        subject.agent.write(file, &[0; 600_000]).await
    };
    let path = subject.path("unwritten");
    let relative = write("relative", None).await;
    failed_as("a relative path", relative, ErrorKind::Invalid)?;
    let folder = write(&subject.scratch, None).await;
    failed_as("a folder", folder, ErrorKind::Conflict)?;
    let unknown = write(&path, Some("no-such-user")).await;
    failed_as("an unknown user", unknown, ErrorKind::NotFound)?;
    let gone = subject.agent.read(path.as_bytes(), 1).await;
    failed_as("what was refused", gone, ErrorKind::NotFound)
}

pub(super) async fn owners_are_given(subject: &Subject) -> Verdict {
    subject.needs_users()?;
    let path = subject.path("owned/file");
    let file = NewFile::at(path.as_bytes()).with_user(Some("nobody"));
    subject.agent.write(file, b"x").await?;
    let script = format!("stat -c %U {path} {}", subject.path("owned"));
    same(
        "owners",
        subject.script(&script).await?,
        "nobody\nnobody".into(),
    )
}

pub(super) async fn a_tree_is_packed_and_unpacked(subject: &Subject) -> Verdict {
    let (from, to) = (subject.path("from"), subject.path("to"));
    subject
        .script(&format!(
            "mkdir -p {from}/empty {from}/deep/er && cd {from} && echo text >deep/er/file && \
             printf '#!/bin/sh\\n' >run && chmod 755 run && ln -s deep/er/file link && \
             ln -s /nowhere dangling && head -c 300000 /dev/urandom >large && \
             printf x >\"$(printf 'odd \\377 name')\" && touch -d @1000000000 deep/er/file"
        ))
        .await?;
    let packed = read_all(Some(subject.agent.pack(from.as_bytes()).await?)).await?;
    subject
        .agent
        .unpack(to.as_bytes(), None, &mut packed.as_slice())
        .await?;
    subject
        .script(&format!(
            "diff -r --no-dereference {from} {to} && test -x {to}/run && test -d {to}/empty"
        ))
        .await?;
    let stat = format!("stat -c %Y {to}/deep/er/file");
    same("time", subject.script(&stat).await?, "1000000000".into())?;
    let path = format!("{from}/run");
    let one = read_all(Some(subject.agent.pack(path.as_bytes()).await?)).await?;
    ensure(one.starts_with(b"run\0"), || {
        "a file packs by its name".into()
    })
}

pub(super) async fn a_tree_in_use_is_packed_whole(subject: &Subject) -> Verdict {
    let folder = subject.path("busy");
    let script = format!(
        "mkdir {folder} && cd {folder} && mkfifo pipe && head -c 300000 /dev/zero >log && \
         echo ready; while :; do head -c 50000 /dev/zero >>log; : >new; rm new; \
         test $(stat -c %s log) -lt 20000000 || : >log; done"
    );
    let mut running = subject.start(shell(&script)).await?;
    let mut stdout = take(&mut running.stdout)?;
    same("start", read_line(&mut stdout).await?, "ready".into())?;
    for _ in 0..3 {
        let packed = read_all(Some(subject.agent.pack(folder.as_bytes()).await?)).await?;
        let mut names = Vec::new();
        for entry in tar::Archive::new(packed.as_slice()).entries()? {
            let entry = entry?;
            names.push(text(&entry.path_bytes()));
        }
        names.retain(|name| name != "new");
        names.sort();
        same("names", names, vec![".".to_owned(), "log".to_owned()])?;
        ensure(packed.ends_with(&[0; 1024]), || "it has no end".into())?;
    }
    running.control.tell(ExecControl::Kill).await;
    running.end.wait().await?;
    Ok(())
}

pub(super) async fn packing_fails_by_kind(subject: &Subject) -> Verdict {
    let agent = &subject.agent;
    for (path, wanted) in [
        ("/no/such/folder", ErrorKind::NotFound),
        ("relative", ErrorKind::Invalid),
    ] {
        failed_as(path, agent.pack(path.as_bytes()).await, wanted)?;
    }
    let target = subject.path("junk");
    let junk = [0x55u8; 600_000];
    let unpacked = agent
        .unpack(target.as_bytes(), None, &mut junk.as_slice())
        .await;
    ensure(unpacked.is_err(), || "junk was unpacked".into())?;
    let passwd = agent
        .unpack(b"/etc/passwd", None, &mut &junk[..10_240])
        .await;
    ensure(passwd.is_err(), || {
        "a file took the place of a folder".into()
    })
}

pub(super) async fn nothing_is_unpacked_outside(subject: &Subject) -> Verdict {
    let folder = subject.path("inner");
    let mut archive = tar::Builder::new(Vec::new());
    for name in ["../escaped", "fine"] {
        let mut header = tar::Header::new_gnu();
        // The library would not write such a name itself.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, &b"x"[..])?;
    }
    let archive = archive.into_inner()?;
    subject
        .agent
        .unpack(folder.as_bytes(), None, &mut archive.as_slice())
        .await?;
    subject
        .agent
        .read(format!("{folder}/fine").as_bytes(), 10)
        .await?;
    let outside = subject.path("escaped");
    let escaped = subject.agent.read(outside.as_bytes(), 10).await;
    failed_as("outside", escaped, ErrorKind::NotFound)
}
