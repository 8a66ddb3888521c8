//! Programs and their arguments: no shell comes between.

use sandbox_base::ErrorKind;

use super::subject::{Subject, Verdict, command, exited, same, text};
use crate::agent::NewFile;
use crate::channel::protocol::Exec;

pub(super) async fn words_arrive_as_they_are(subject: &Subject) -> Verdict {
    let words: [&[u8]; 8] = [
        b"two words",
        b"",
        b"$HOME `id` $(id)",
        b"*",
        b"'\"\\",
        b"line\nbreak",
        b"\xff\xfe\x80",
        b"--",
    ];
    let mut exec = command(&["printf", "<%s>"]);
    exec.argv.extend(words.iter().map(|word| word.to_vec()));
    let wanted = words.iter().fold(Vec::new(), |mut all, word| {
        all.push(b'<');
        all.extend_from_slice(word);
        all.push(b'>');
        all
    });
    let output = subject.output(exec).await?;
    same("words", text(&output.stdout), text(&wanted))?;
    same("bytes", output.stdout, wanted)
}

pub(super) async fn a_path_is_not_searched_for(subject: &Subject) -> Verdict {
    let mut exec = command(&["/bin/sh", "-c", "printf here"]);
    exec.env_clear = true;
    let output = subject.output(exec).await?;
    same("output", text(&output.stdout), "here".into())
}

pub(super) async fn a_missing_program_is_not_found(subject: &Subject) -> Verdict {
    for program in ["no-such-program-anywhere", "/no/such/program", ""] {
        subject
            .refused(command(&[program]), ErrorKind::NotFound)
            .await?;
    }
    Ok(())
}

pub(super) async fn what_cannot_be_executed_is_denied(subject: &Subject) -> Verdict {
    let path = subject.path("not-executable");
    let file = NewFile::at(path.as_bytes()).with_mode(0o644);
    subject.agent.write(file, b"#!/bin/sh\n").await?;
    for program in [path.as_str(), "/"] {
        subject
            .refused(command(&[program]), ErrorKind::PermissionDenied)
            .await?;
    }
    Ok(())
}

pub(super) async fn nonsense_is_invalid(subject: &Subject) -> Verdict {
    let with_nul = command(&["echo", "a\0b"]);
    let nothing: Exec = command(&[]);
    let endless = command(&["true", &"x".repeat(3 << 20)]);
    for exec in [with_nul, nothing, endless] {
        subject.refused(exec, ErrorKind::Invalid).await?;
    }
    Ok(())
}

pub(super) async fn long_arguments_arrive(subject: &Subject) -> Verdict {
    let long = "x".repeat(100_000);
    let mut exec = command(&["sh", "-c", "echo $# ${#8}", "sh"]);
    exec.argv.extend(std::iter::repeat_n(long.into_bytes(), 10));
    let output = subject.output(exec).await?;
    same("end", output.exit, exited(0))?;
    same("count", text(&output.stdout), "10 100000\n".into())
}
