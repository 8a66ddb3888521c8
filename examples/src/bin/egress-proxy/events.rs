//! Where events go.

use sandbox_net::{
    Proxy,
    event::{LogFile, Subscription},
};
use tokio::{io::AsyncWriteExt, task::JoinHandle};

use crate::{Failure, arguments::Arguments};

/// The size at which a file is begun anew; the one before is kept beside it.
const FILE_SIZE: u64 = 64 << 20;

/// Begins to write events; `None` if nobody wants them. The task ends with the proxy.
pub(crate) fn write(
    proxy: &Proxy,
    arguments: &Arguments,
) -> Result<Option<JoinHandle<()>>, Failure> {
    Ok(match arguments.events.as_str() {
        "none" => None,
        "-" => Some(tokio::spawn(print(proxy.subscribe()))),
        path => {
            let file = LogFile::open(path, FILE_SIZE)?;
            Some(tokio::spawn(file.follow(proxy.subscribe())))
        }
    })
}

/// Writes to standard output, as long as somebody reads it.
async fn print(mut events: Subscription) {
    let mut output = tokio::io::stdout();
    while let Some(event) = events.next().await {
        let mut lines = event.to_json_line() + "\n";
        while let Some(event) = events.try_next() {
            lines += &(event.to_json_line() + "\n");
        }
        let written = output.write_all(lines.as_bytes()).await;
        if written.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}
