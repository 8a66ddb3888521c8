//! Many things at once.

use futures::future::try_join_all;

use super::subject::{Problem, Subject, Verdict, command, same, with_input};

const AT_ONCE: usize = 64;

pub(super) async fn many_commands_run_at_once(subject: &Subject) -> Verdict {
    let runs = (0..AT_ONCE).map(|number| async move {
        let said = subject
            .script(&format!("echo {number}; exec sleep 0.2"))
            .await?;
        same("output", said, number.to_string())
    });
    try_join_all(runs).await.map(drop)
}

pub(super) async fn many_silent_commands_hold_up_nothing(subject: &Subject) -> Verdict {
    let sleeping = (0..subject.options.crowd).map(|_| async {
        let exec = with_input(command(&["sleep", "1000"]));
        Ok::<_, Problem>(subject.start(exec).await?)
    });
    let sleeping = try_join_all(sleeping).await?;
    same("another", subject.script("echo well").await?, "well".into())?;
    let pids: Vec<String> = sleeping.iter().map(|one| one.pid.to_string()).collect();
    drop(sleeping);
    for pid in pids {
        subject.wait_until_gone(&pid).await?;
    }
    Ok(())
}
