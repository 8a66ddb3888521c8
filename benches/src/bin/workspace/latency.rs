//! From a file saved on one side to its bytes on the other, a thousand files at once, and nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sandbox_benches::Result;
use sandbox_benches::report::{Aim, Row, median};
use sandbox_core::Sandbox;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Command;

use crate::apart::Apart;
use crate::inside::{Inside, PROGRAM};
use crate::tree;

const SAVES: usize = 60;
const MANY: usize = 1_000;
/// The bound on every wait.
const HANG: Duration = Duration::from_secs(60);

/// What a turn measured, in milliseconds.
#[derive(Default)]
struct Turn {
    /// A line there and back.
    echo: Vec<f64>,
    to: Vec<f64>,
    back: Vec<f64>,
    many_to: f64,
    many_back: f64,
}

/// Has two processes take a turn and then the machine, each on a tree of so many files.
pub(crate) async fn measure(
    sandbox: &Sandbox,
    (project, folder): (&Path, &Path),
    files: usize,
) -> Result<Vec<Row>> {
    let [tree, copy] = ["apart", "copy"].map(|name| folder.join(name));
    tree::write(&tree, files)?;
    let floor = {
        let _apart = Apart::start(&tree, &copy).await?;
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let ends = child.stdout.take().zip(child.stdin.take());
        let (output, input) = ends.ok_or("no pipes")?;
        turn([&tree, &copy], Inside::new(output, input)).await?
    };
    eprintln!("saved files, between two processes");

    tree::write(&project.join("t"), files)?;
    sandbox.sync().await?;
    let mut command = sandbox.command("python3");
    command
        .args(["-c", PROGRAM])
        .stdin(sandbox_core::Stdio::piped())
        .stdout(sandbox_core::Stdio::piped());
    let mut child = command.spawn().await?;
    let ends = child.stdout.take().zip(child.stdin.take());
    let (output, input) = ends.ok_or("no streams")?;
    let root = project.join("t");
    let ours = turn([&root, &root], Inside::new(output, input)).await?;
    eprintln!("saved files, into a machine and back");
    let mut rows = rows(floor, ours);
    rows.push(nothing(sandbox).await?);
    Ok(rows)
}

fn rows(floor: Turn, ours: Turn) -> Vec<Row> {
    let row = |name: &str, aim, [floor, ours]: [f64; 2]| {
        let mut row = Row::new(name, "ms", aim);
        (row.floor, row.ours) = (vec![floor], vec![ours]);
        row
    };
    let middle = |values: &[f64]| median(values).unwrap_or(f64::NAN);
    let more = Aim::AtMostOrAbove(1.0, 30.0);
    let second = Aim::Below(1_000.0);
    vec![
        row(
            "a line there and back",
            Aim::None,
            [middle(&floor.echo), middle(&ours.echo)],
        ),
        row(
            "saved, seen in the guest",
            more,
            [middle(&floor.to), middle(&ours.to)],
        ),
        row("the same, p95", Aim::None, [p95(floor.to), p95(ours.to)]),
        row(
            "saved in the guest, seen",
            more,
            [middle(&floor.back), middle(&ours.back)],
        ),
        row(
            "the same, p95",
            Aim::None,
            [p95(floor.back), p95(ours.back)],
        ),
        row(
            "1,000 files to the guest",
            second,
            [floor.many_to, ours.many_to],
        ),
        row(
            "1,000 files back",
            second,
            [floor.many_back, ours.many_back],
        ),
    ]
}

fn p95(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(values.len() * 95 / 100)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Milliseconds of a look that finds nothing.
async fn nothing(sandbox: &Sandbox) -> Result<Row> {
    let mut row = Row::new("nothing changed", "ms", Aim::None);
    // What is younger than two seconds is read again.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    sandbox.sync().await?;
    for _ in 0..20 {
        let start = Instant::now();
        sandbox.sync().await?;
        row.ours.push(milliseconds(start));
    }
    Ok(row)
}

/// Saves files, one after the other on either side, and then a thousand at once. The other side's root may have
/// the same name as ours and be in a machine.
async fn turn(
    [here, there]: [&Path; 2],
    mut inside: Inside<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
) -> Result<Turn> {
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut turn = Turn::default();
    for number in 0..SAVES {
        let start = Instant::now();
        inside.tell("echo").await?;
        inside.hear("done").await?;
        turn.echo.push(milliseconds(start));

        let path = tree::path(number * 13);
        inside
            .tell(&format!("see {} to-{number}", there.join(&path).display()))
            .await?;
        inside.hear("ready").await?;
        let saving = here.join("saving");
        fs::write(&saving, format!("to-{number}"))?;
        let start = Instant::now();
        fs::rename(&saving, here.join(&path))?;
        inside.hear("done").await?;
        turn.to.push(milliseconds(start));
        // Not in step with anything that repeats.
        let pause = Duration::from_millis(40 + number as u64 * 7 % 90);
        tokio::time::sleep(pause).await;

        let text = format!("back-{number}");
        let start = Instant::now();
        inside
            .tell(&format!("save {} {text}", there.join(&path).display()))
            .await?;
        let arrived = || fs::read_to_string(here.join(&path)).is_ok_and(|found| found == text);
        until(arrived, Duration::from_micros(300)).await?;
        turn.back.push(milliseconds(start));
        inside.hear("done").await?;
        tokio::time::sleep(pause).await;
    }
    many([here, there], (&mut inside, &mut turn)).await?;
    Ok(turn)
}

async fn many(
    [here, there]: [&Path; 2],
    (inside, turn): (
        &mut Inside<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
        &mut Turn,
    ),
) -> Result<()> {
    let many = |root: &Path, name: &str| -> PathBuf { root.join(name) };
    inside
        .tell(&format!("count {} {MANY}", many(there, "to").display()))
        .await?;
    inside.hear("ready").await?;
    let start = Instant::now();
    fs::create_dir(many(here, "to"))?;
    for number in 0..MANY {
        fs::write(
            many(here, "to").join(number.to_string()),
            number.to_string(),
        )?;
    }
    inside.hear("done").await?;
    turn.many_to = milliseconds(start);
    let start = Instant::now();
    inside
        .tell(&format!("many {} {MANY}", many(there, "back").display()))
        .await?;
    let arrived = many(here, "back");
    // Whoever lists so many names all the time has a processor to himself.
    let all = || fs::read_dir(&arrived).is_ok_and(|names| names.count() >= MANY);
    until(all, Duration::from_millis(10)).await?;
    turn.many_back = milliseconds(start);
    inside.hear("done").await
}

async fn until(mut holds: impl FnMut() -> bool, pause: Duration) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > HANG {
            return Err("it did not arrive".into());
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
