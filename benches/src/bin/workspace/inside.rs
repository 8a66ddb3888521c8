//! Whoever looks and saves on the other side, in a microVM or in another process: does a line at a time.

use sandbox_benches::Result;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

/// The program, for `python3 -c`.
///
/// | line | does |
/// |---|---|
/// | `echo` | says `done` |
/// | `see PATH TEXT` | says `ready`, and `done` as soon as the file has this text |
/// | `count PATH N` | says `ready`, and `done` as soon as the folder has so many names in it |
/// | `save PATH TEXT` | saves by a rename, and says `done` |
/// | `many PATH N` | makes a folder with so many files, and says `done` |
pub(crate) const PROGRAM: &str = r"
import os, sys, time
def say(word): print(word, flush=True)
def wait(holds, pause):
    say('ready')
    while not holds(): time.sleep(pause)
    say('done')
def text(path):
    try: return open(path).read()
    except FileNotFoundError: return None
def names(path):
    try: return len(os.listdir(path))
    except FileNotFoundError: return 0
for line in sys.stdin:
    word, *rest = line.split()
    if word == 'echo': say('done')
    elif word == 'see': wait(lambda: text(rest[0]) == rest[1], 0.0005)
    elif word == 'count': wait(lambda: names(rest[0]) >= int(rest[1]), 0.01)
    elif word == 'save':
        beside = os.path.join(os.path.dirname(rest[0]), '.saving')
        with open(beside, 'w') as file: file.write(rest[1])
        os.rename(beside, rest[0])
        say('done')
    elif word == 'many':
        os.mkdir(rest[0])
        for number in range(int(rest[1])):
            with open(os.path.join(rest[0], str(number)), 'w') as file: file.write(str(number))
        say('done')
";

/// The two ends of the program's conversation.
pub(crate) struct Inside<R, W> {
    output: BufReader<R>,
    input: W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Inside<R, W> {
    pub(crate) fn new(output: R, input: W) -> Self {
        let output = BufReader::new(output);
        Self { output, input }
    }

    /// Has it do a line.
    pub(crate) async fn tell(&mut self, line: &str) -> Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    /// Waits for what it says, which has to be this word.
    pub(crate) async fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        tokio::time::timeout(std::time::Duration::from_secs(60), read).await??;
        match line.trim() == word {
            true => Ok(()),
            false => Err(format!("{line:?} in place of {word}").into()),
        }
    }
}
