//! How commands end, and who ends with them.

use super::subject::{
    Subject, Verdict, command, exited, killed, read_line, same, shell, take, until_empty,
};
use crate::channel::protocol::{ExecControl, ExitCause};

const TERM: i32 = 15;
const KILL: i32 = 9;

pub(super) async fn codes_come_back(subject: &Subject) -> Verdict {
    for code in (0..=255).step_by(15) {
        let exit = subject.output(shell(&format!("exit {code}"))).await?.exit;
        same("end", exit, exited(code))?;
    }
    Ok(())
}

pub(super) async fn a_signal_is_told(subject: &Subject) -> Verdict {
    let exit = subject.output(shell("kill -TERM $$")).await?.exit;
    same("end", exit, killed(TERM, ExitCause::Own))
}

pub(super) async fn signals_reach_the_whole_group(subject: &Subject) -> Verdict {
    let script = "sh -c 'trap \"echo child; exit\" TERM; echo ready; while :; do sleep 0.05; done' & \
                  trap 'wait; exit 3' TERM; wait";
    let mut running = subject.start(shell(script)).await?;
    let mut stdout = take(&mut running.stdout)?;
    same("start", read_line(&mut stdout).await?, "ready".into())?;
    // No such signals: nothing happens.
    for signal in [0, -1, 9999, TERM] {
        running.control.tell(ExecControl::Signal(signal)).await;
    }
    same("child", read_line(&mut stdout).await?, "child".into())?;
    same("end", running.end.wait().await?, exited(3))
}

/// A command with a child, whose number it prints first. The child leaves the session where the backend
/// promises to reach it there too.
fn with_child(subject: &Subject) -> String {
    let setsid = if subject.capabilities.control_groups {
        "setsid "
    } else {
        ""
    };
    format!("{setsid}sh -c 'echo $$; exec sleep 1000' & wait")
}

pub(super) async fn kill_leaves_nothing(subject: &Subject) -> Verdict {
    let mut running = subject.start(shell(&with_child(subject))).await?;
    let child = read_line(&mut take(&mut running.stdout)?).await?;
    running.control.tell(ExecControl::Kill).await;
    same(
        "end",
        running.end.wait().await?,
        killed(KILL, ExitCause::Own),
    )?;
    subject.wait_until_gone(&child).await
}

pub(super) async fn time_runs_out_for_all(subject: &Subject) -> Verdict {
    let mut exec = shell(&with_child(subject));
    exec.timeout_ms = Some(1000);
    let mut running = subject.start(exec).await?;
    let child = read_line(&mut take(&mut running.stdout)?).await?;
    let exit = running.end.wait().await?;
    same("end", exit, killed(KILL, ExitCause::Timeout))?;
    subject.wait_until_gone(&child).await
}

pub(super) async fn who_is_in_time_is_not_blamed(subject: &Subject) -> Verdict {
    let mut exec = shell("exit 9");
    exec.timeout_ms = Some(60_000);
    same("end", subject.output(exec).await?.exit, exited(9))
}

pub(super) async fn a_closed_control_kills(subject: &Subject) -> Verdict {
    let mut running = subject.start(shell(&with_child(subject))).await?;
    let child = read_line(&mut take(&mut running.stdout)?).await?;
    let leader = running.pid.to_string();
    drop(running);
    subject.wait_until_gone(&leader).await?;
    subject.wait_until_gone(&child).await
}

pub(super) async fn the_end_does_not_wait_for_readers(subject: &Subject) -> Verdict {
    let running = subject
        .start(command(&["head", "-c", "50000", "/dev/zero"]))
        .await?;
    let (unread, end) = ((running.stdout, running.stderr), running.end);
    same("end", end.wait().await?, exited(0))?;
    drop(unread);
    Ok(())
}

pub(super) async fn orphans_are_reaped(subject: &Subject) -> Verdict {
    subject
        .script("for i in 1 2 3 4 5 6 7 8; do (sleep 0.1 >/dev/null 2>&1 &); done")
        .await?;
    // The shell's parent is the agent, to which orphans go: first the sleepers, then what is left of them.
    let orphans = "for stat in /proc/[0-9]*/stat; do \
                   read -r line 2>/dev/null <\"$stat\" || continue; set -- ${line##*) }; \
                   test \"$2\" = $PPID || continue; \
                   case $line in *'(sleep)'*) echo \"$line\";; *) test \"$1\" != Z || echo \"$line\";; \
                   esac; done; true";
    until_empty(|| subject.script(orphans)).await
}

pub(super) async fn a_background_process_outlives_its_command(subject: &Subject) -> Verdict {
    let pid = subject
        .script("sleep 1000 >/dev/null 2>&1 & echo $!")
        .await?;
    same("it runs", subject.runs(&pid).await?, true)?;
    subject.script(&format!("kill {pid}")).await?;
    subject.wait_until_gone(&pid).await
}
