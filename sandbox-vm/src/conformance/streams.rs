//! Standard streams: apart from each other, with back-pressure, of any length.

use std::time::Duration;

use sandbox_base::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::subject::{
    Subject, Verdict, command, ensure, exited, failed, killed, read_all, read_line, same, shell,
    take, text, with_input,
};
use crate::channel::protocol::{ExecControl, ExitCause, Stdio};

/// What may be under way between a command that writes and a reader that does not: its pipe, the window
/// of its stream, the buffers between.
const MAX_UNDER_WAY: u64 = 2 << 20;

pub(super) async fn output_and_errors_are_apart(subject: &Subject) -> Verdict {
    let output = subject
        .output(shell("echo out; echo err >&2; echo out"))
        .await?;
    same("output", text(&output.stdout), "out\nout\n".into())?;
    same("errors", text(&output.stderr), "err\n".into())
}

pub(super) async fn input_flows_and_ends(subject: &Subject) -> Verdict {
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 + n / 256) as u8).collect();
    let mut running = subject.start(with_input(command(&["cat"]))).await?;
    let mut stdin = take(&mut running.stdin)?;
    let writing = async {
        stdin.write_all(&sent).await?;
        stdin.shutdown().await
    };
    let (written, read) = tokio::join!(writing, read_all(running.stdout.take()));
    written?;
    ensure(read? == sent, || {
        "what came back is not what was sent".into()
    })?;
    same("end", running.end.wait().await?, exited(0))
}

pub(super) async fn input_is_answered_while_it_is_open(subject: &Subject) -> Verdict {
    let script = "while read -r line; do echo \"got $line\"; done";
    let mut running = subject.start(with_input(shell(script))).await?;
    let (mut stdin, mut stdout) = (take(&mut running.stdin)?, take(&mut running.stdout)?);
    for word in ["one", "two"] {
        stdin.write_all(format!("{word}\n").as_bytes()).await?;
        stdin.flush().await?;
        same(
            "answer",
            read_line(&mut stdout).await?,
            format!("got {word}"),
        )?;
    }
    stdin.shutdown().await?;
    same("end", running.end.wait().await?, exited(0))
}

pub(super) async fn unasked_streams_are_empty(subject: &Subject) -> Verdict {
    let mut exec = shell("cat; echo nobody reads this; echo nor this >&2; exit 5");
    exec.stdio.clear();
    let running = subject.start(exec).await?;
    let given = running.stdin.is_some() || running.stdout.is_some() || running.stderr.is_some();
    ensure(!given, || "streams that nobody asked for".into())?;
    same("end", running.end.wait().await?, exited(5))
}

pub(super) async fn a_command_may_close_its_input(subject: &Subject) -> Verdict {
    let exec = with_input(shell("exec <&-; echo closed; exec sleep 1000"));
    let mut running = subject.start(exec).await?;
    let (mut stdin, mut stdout) = (take(&mut running.stdin)?, take(&mut running.stdout)?);
    same("answer", read_line(&mut stdout).await?, "closed".into())?;
    let block = [0; 64 << 10];
    let error = loop {
        if let Err(error) = stdin.write_all(&block).await {
            break error;
        }
    };
    same("writer", ErrorKind::from(&error), ErrorKind::Disconnected)?;
    running.control.tell(ExecControl::Kill).await;
    running.end.wait().await?;
    Ok(())
}

pub(super) async fn a_reader_may_go_away(subject: &Subject) -> Verdict {
    let mut exec = command(&["yes"]);
    exec.stdio = vec![Stdio::Out];
    let mut running = subject.start(exec).await?;
    read_line(&mut take(&mut running.stdout)?).await?;
    let exit = running.end.wait().await?;
    // By the signal, or by its own word if it ignores that.
    ensure(
        exit.signal == Some(rustix::process::Signal::PIPE.as_raw()) || exit.code == Some(1),
        || format!("{exit:?}"),
    )
}

pub(super) async fn an_unread_stream_holds_up_no_other(subject: &Subject) -> Verdict {
    let mut running = subject
        .start(shell("yes & echo still here >&2; wait"))
        .await?;
    let mut stderr = take(&mut running.stderr)?;
    same("errors", read_line(&mut stderr).await?, "still here".into())?;
    same("another", subject.script("echo well").await?, "well".into())?;
    running.control.tell(ExecControl::Kill).await;
    same("end", running.end.wait().await?, killed(9, ExitCause::Own))
}

pub(super) async fn an_unread_stream_is_bounded(subject: &Subject) -> Verdict {
    let script = "while :; do head -c 65536 /dev/zero; echo >&2; done";
    let mut running = subject.start(shell(script)).await?;
    let mut stderr = take(&mut running.stderr)?;
    let mut written = 0u64;
    // It is held up when nothing has moved for a while.
    while let Ok(line) = tokio::time::timeout(Duration::from_secs(1), read_line(&mut stderr)).await
    {
        line?;
        written += 65_536;
        ensure(written <= MAX_UNDER_WAY, || {
            format!("{written} bytes were taken from a command that nobody reads")
        })?;
    }
    ensure(written > 0, || "nothing was written".into())?;
    running.control.tell(ExecControl::Kill).await;
    running.end.wait().await?;
    Ok(())
}

pub(super) async fn a_flood_passes_through(subject: &Subject) -> Verdict {
    let bytes = subject.options.flood_mib << 20;
    let exec = command(&["head", "-c", &bytes.to_string(), "/dev/zero"]);
    let mut running = subject.start(exec).await?;
    let mut stdout = take(&mut running.stdout)?;
    let before = resident_bytes();
    let (mut read, mut most) = (0, before);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdout.read(&mut buffer).await? {
            0 => break,
            count => read += count as u64,
        }
        if read % (8 << 20) < buffer.len() as u64 {
            most = most.max(resident_bytes());
        }
    }
    same("bytes", read, bytes)?;
    same("end", running.end.wait().await?, exited(0))?;
    let grown = most.unwrap_or(0).saturating_sub(before.unwrap_or(0));
    // With less, what other threads of this process do would drown it.
    if bytes >= 256 << 20 && grown > bytes / 2 {
        return Err(failed(format!("{grown} bytes of memory held for {bytes}")));
    }
    Ok(())
}

/// The memory of this process, where the system says.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes << 10)
}
