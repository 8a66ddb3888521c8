//! Terminals.

use tokio::io::AsyncWriteExt;

use super::subject::{Subject, Verdict, exited, read_line, same, shell, take, text, with_input};
use crate::channel::protocol::{Exec, ExecControl, Stdio, TerminalSize};

fn on_terminal(script: &str) -> Exec {
    let mut exec = with_input(shell(script));
    exec.stdio = vec![Stdio::In, Stdio::Out];
    exec.terminal = Some(TerminalSize::new(30, 100));
    exec
}

pub(super) async fn it_is_one_of_the_size_asked_for(subject: &Subject) -> Verdict {
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM; echo err >&2";
    let output = subject.output(on_terminal(script)).await?;
    let wanted = "30 100\r\nxterm-256color\r\nerr\r\n";
    same("output", text(&output.stdout), wanted.into())?;
    let output = subject.output(shell("test -t 0 || test -t 1")).await?;
    same("without one", output.exit, exited(1))
}

pub(super) async fn it_can_be_resized(subject: &Subject) -> Verdict {
    let script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut running = subject.start(on_terminal(script)).await?;
    let mut stdout = take(&mut running.stdout)?;
    same("start", read_line(&mut stdout).await?, "ready".into())?;
    let size = TerminalSize::new(50, 120);
    running.control.tell(ExecControl::Resize(size)).await;
    same("size", read_line(&mut stdout).await?, "50 120".into())?;
    same("end", running.end.wait().await?, exited(0))
}

pub(super) async fn control_c_interrupts(subject: &Subject) -> Verdict {
    let script = "trap 'echo caught; exit 4' INT; stty -echo; echo ready; \
                  while :; do sleep 0.05; done";
    let mut running = subject.start(on_terminal(script)).await?;
    let (mut stdin, mut stdout) = (take(&mut running.stdin)?, take(&mut running.stdout)?);
    same("start", read_line(&mut stdout).await?, "ready".into())?;
    stdin.write_all(b"\x03").await?;
    stdin.flush().await?;
    same("answer", read_line(&mut stdout).await?, "caught".into())?;
    same("end", running.end.wait().await?, exited(4))
}

pub(super) async fn lines_are_read_and_echoed(subject: &Subject) -> Verdict {
    let mut running = subject
        .start(on_terminal("read -r line; echo \"got $line\""))
        .await?;
    let (mut stdin, mut stdout) = (take(&mut running.stdin)?, take(&mut running.stdout)?);
    stdin.write_all(b"hello\n").await?;
    stdin.flush().await?;
    same("echo", read_line(&mut stdout).await?, "hello".into())?;
    same("answer", read_line(&mut stdout).await?, "got hello".into())?;
    same("end", running.end.wait().await?, exited(0))
}
