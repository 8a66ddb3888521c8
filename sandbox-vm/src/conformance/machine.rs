//! The machine itself, and its end.

use sandbox_base::ErrorKind;

use super::subject::{Problem, Subject, Verdict, command, ensure, failed, same};

pub(super) async fn it_is_what_it_says(subject: &Subject) -> Verdict {
    let facts = subject.machine.facts();
    same("backend", facts.backend, subject.name)?;
    same("wall", facts.isolation, subject.capabilities.isolation)
}

/// Whatever a program connects to is taken by the agent, or nothing is and the guest has said why.
pub(super) async fn it_captures_as_it_says(subject: &Subject) -> Verdict {
    let Some(wanted) = &subject.spec.setup.capture else {
        let reason = "the specification asks for no capture";
        return Err(Problem::Skipped(reason.into()));
    };
    let missing = subject.agent.prepared().and_then(|p| p.uncaptured.clone());
    let captures = subject.capabilities.capture;
    ensure(missing.is_none() == captures, || {
        format!("declared: {captures}; the guest says: {missing:?}")
    })?;
    if !captures {
        return Ok(());
    }
    let resolver = format!("nameserver {}", wanted.link.gateway);
    let said = subject.script("cat /etc/resolv.conf").await?;
    same("resolver", said.trim(), &*resolver)
}

pub(super) async fn it_has_one_connection(subject: &Subject) -> Verdict {
    match subject.machine.connect().await {
        Ok(_) => Err(failed("a second connection was made")),
        Err(error) => same("second", error.kind(), ErrorKind::Conflict),
    }
}

/// The last check.
pub(super) async fn killing_it_ends_everything(subject: &Subject) -> Verdict {
    subject
        .script(&format!("rm -rf {}", subject.scratch))
        .await?;
    let running = subject.start(command(&["sleep", "1000"])).await?;
    let waiting = tokio::spawn(running.end.wait());
    subject.machine.kill().await?;
    subject.machine.kill().await?;
    match waiting.await {
        Ok(Err(error)) => same("waiting", error.kind(), ErrorKind::Disconnected)?,
        other => {
            return Err(failed(format!(
                "the command is said to have ended: {other:?}"
            )));
        }
    }
    let end = subject.machine.wait().await;
    ensure(end == subject.machine.wait().await, || {
        "its end is told in two ways".into()
    })?;
    let another = subject.start(command(&["true"])).await;
    match another {
        Ok(_) => return Err(failed("a dead machine runs commands")),
        Err(error) => same("another", error.kind(), ErrorKind::Disconnected)?,
    }
    ensure(!subject.spec.folder.exists(), || {
        "the machine's folder is still there".into()
    })
}
