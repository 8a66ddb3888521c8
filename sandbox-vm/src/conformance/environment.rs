//! Variables, working directory, user.

use sandbox_base::ErrorKind;

use super::subject::{Subject, Verdict, command, ensure, same, shell, text};

pub(super) async fn variables_are_added_and_replaced(subject: &Subject) -> Verdict {
    let mut exec = shell("printf '%s %s' \"$ADDED\" \"$HOME\"");
    exec.env = vec![
        (b"ADDED".to_vec(), b"1".to_vec()),
        (b"HOME".to_vec(), b"/elsewhere".to_vec()),
    ];
    let output = subject.output(exec).await?;
    same("values", text(&output.stdout), "1 /elsewhere".into())
}

pub(super) async fn variables_are_removed(subject: &Subject) -> Verdict {
    let mut exec = shell("printf '%s' \"${USER-none}\"");
    exec.env_remove = vec![b"USER".to_vec()];
    let output = subject.output(exec).await?;
    same("the removed one", text(&output.stdout), "none".into())
}

pub(super) async fn a_cleared_one_is_empty(subject: &Subject) -> Verdict {
    let mut exec = command(&["/usr/bin/env"]);
    exec.env_clear = true;
    exec.env = vec![(b"ONLY".to_vec(), b"this".to_vec())];
    let output = subject.output(exec).await?;
    same("environment", text(&output.stdout), "ONLY=this\n".into())
}

pub(super) async fn values_keep_their_bytes(subject: &Subject) -> Verdict {
    let value = b"a=b \n\xff\"$HOME\"".to_vec();
    let mut exec = shell("printf %s \"$V\"");
    exec.env = vec![(b"V".to_vec(), value.clone())];
    let output = subject.output(exec).await?;
    same("value", output.stdout, value)
}

pub(super) async fn the_usual_ones_are_there(subject: &Subject) -> Verdict {
    let script = "for v in \"$PATH\" \"$HOME\" \"$USER\" \"$LOGNAME\" \"$SHELL\"; do \
                  test -n \"$v\" || exit 1; done";
    subject.script(script).await.map(drop)
}

pub(super) async fn a_folder_can_be_chosen(subject: &Subject) -> Verdict {
    let mut exec = command(&["pwd", "-P"]);
    exec.cwd = Some(b"/usr".to_vec());
    let output = subject.output(exec).await?;
    same("chosen", text(&output.stdout), "/usr\n".into())?;
    let default = subject.script("pwd -P").await?;
    let home = subject
        .script("cd \"$HOME\" 2>/dev/null || cd /; pwd -P")
        .await?;
    same("default", default, home)
}

pub(super) async fn a_missing_folder_is_not_found(subject: &Subject) -> Verdict {
    for cwd in ["/no/such/folder", "/etc/passwd"] {
        let mut exec = command(&["true"]);
        exec.cwd = Some(cwd.into());
        subject.refused(exec, ErrorKind::NotFound).await?;
    }
    Ok(())
}

pub(super) async fn users_are_found_by_name_and_number(subject: &Subject) -> Verdict {
    subject.needs_users()?;
    for (user, wanted) in [
        ("nobody", "nobody 65534"),
        ("65534", "nobody 65534"),
        ("4711:4712", "4711 4712"),
        ("0:0", "root 0"),
    ] {
        // Without a name `id -un` prints the number and fails.
        let mut exec = shell("name=$(id -un 2>/dev/null) || name=$(id -u); echo $name $(id -g)");
        exec.user = Some(user.into());
        exec.cwd = Some(b"/".to_vec());
        let output = subject.output(exec).await?;
        same(
            user,
            text(&output.stdout).trim_end().to_owned(),
            wanted.into(),
        )?;
    }
    let mut exec = shell("id -G; printf %s \"$HOME\"");
    exec.user = Some("nobody".into());
    let output = text(&subject.output(exec).await?.stdout);
    let groups = output.lines().next().unwrap_or_default();
    ensure(!groups.split(' ').any(|group| group == "0"), || {
        format!("an ordinary user is in root's group: {output}")
    })
}

pub(super) async fn unknown_users_are_refused(subject: &Subject) -> Verdict {
    for (user, wanted) in [
        ("no-such-user", ErrorKind::NotFound),
        ("root:no-number", ErrorKind::Invalid),
    ] {
        let mut exec = command(&["true"]);
        exec.user = Some(user.into());
        subject.refused(exec, wanted).await?;
    }
    Ok(())
}
