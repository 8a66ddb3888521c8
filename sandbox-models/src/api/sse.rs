//! Server-sent events: bytes in, events out.
//!
//! The grammar is the one of the HTML standard ("Server-sent events", parsing an event stream): lines
//! end in CR, LF or CRLF, a byte order mark at the start is dropped, a line that starts with a colon
//! is a comment, fields are `name: value`, an empty line ends an event, and an event that the stream's
//! end cuts off is dropped. What is not UTF-8 is replaced, as there.
//!
//! Fields other than `data` are ignored: the OpenAI API says everything in it, and nobody reconnects.
//!
//! Bytes may arrive in any pieces; the events are the same. A line and an event's data together never
//! hold more than the limit.

/// What was fed holds a line or an event beyond the limit. The decoder is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than the limit of {limit} bytes")]
pub(crate) struct TooLong {
    limit: usize,
}

/// Decodes one stream of events.
#[derive(Debug)]
pub(crate) struct Decoder {
    limit: usize,
    line: Vec<u8>,
    data: Option<String>,
    after_cr: bool,
    first_line: bool,
}

impl Decoder {
    /// Starts at the beginning of a stream; no line and no event may exceed `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            data: None,
            after_cr: false,
            first_line: true,
        }
    }

    /// Takes the next bytes and hands the data of each event that they complete to `event`.
    ///
    /// Stops at the first error, the decoder's or the caller's.
    pub(crate) fn feed<E: From<TooLong>>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(String) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
                return Ok(self.hold(bytes)?);
            };
            self.hold(&bytes[..end])?;
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if let Some(data) = self.end_line() {
                event(data)?;
            }
        }
        Ok(())
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if held.saturating_add(bytes.len()) > self.limit {
            return Err(TooLong { limit: self.limit });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads the line that is held; an empty one gives the event that it ends.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            // An event whose data is empty is dispatched by nobody.
            return self.data.take().filter(|data| !data.is_empty());
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            _ => return None,
        };
        let value = String::from_utf8_lossy(value);
        match &mut self.data {
            Some(data) => {
                data.push('\n');
                data.push_str(&value);
            }
            None => self.data = Some(value.into_owned()),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(limit: usize, pieces: &[&[u8]]) -> Result<Vec<String>, (Vec<String>, TooLong)> {
        let mut decoder = Decoder::new(limit);
        let mut events = Vec::new();
        for piece in pieces {
            let fed = decoder.feed(piece, |event| {
                events.push(event);
                Ok::<(), TooLong>(())
            });
            if let Err(error) = fed {
                return Err((events, error));
            }
        }
        Ok(events)
    }

    fn all(bytes: &str) -> Vec<String> {
        events(1 << 16, &[bytes.as_bytes()]).expect("within the limit")
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("data: a{end}data:b{end}{end}data: c{end}{end}");
            assert_eq!(all(&text), ["a\nb", "c"], "{end:?}");
        }
    }

    #[test]
    fn comments_other_fields_and_cut_events_are_dropped() {
        let text = ": ping\n\nevent: x\nid: 1\nretry: 5\ndatum: no\ndata: a\n\ndata: cut off";
        assert_eq!(all(text), ["a"]);
    }

    #[test]
    fn only_one_space_is_the_separators() {
        assert_eq!(all("data:  a \n\n"), [" a "]);
    }

    #[test]
    fn empty_data_is_no_event_but_an_empty_line_of_data_is_kept() {
        assert_eq!(
            all("data\n\ndata:\n\ndata: a\ndata\ndata: b\n\n"),
            ["a\n\nb"]
        );
    }

    #[test]
    fn a_byte_order_mark_is_dropped_at_the_start_only() {
        assert_eq!(
            all("\u{feff}data: a\n\n\u{feff}data: b\n\ndata: c\n\n"),
            ["a", "c"]
        );
    }

    #[test]
    fn the_limit_holds_for_a_line_and_for_an_event_of_many_lines() {
        assert_eq!(events(8, &[b"data: ab\n\n"]), Ok(vec!["ab".to_owned()]));
        assert!(events(8, &[b"data: abc\n\n"]).is_err());
        assert!(events(8, &[b": endless comment"]).is_err());
        assert!(events(8, &[b"data: a\ndata: b\ndata: c\n\n"]).is_err());
    }

    fn cases() -> ProptestConfig {
        let cases = std::env::var("SANDBOX_CASES")
            .ok()
            .and_then(|n| n.parse().ok());
        ProptestConfig::with_cases(cases.unwrap_or(256))
    }

    /// Bytes that are mostly made of what the grammar cares about.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            Just(b"data: ".to_vec()),
            Just(b"data".to_vec()),
            Just(b":".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\n\n".to_vec()),
            Just(b"\r\n\r\n".to_vec()),
            Just("\u{feff}".as_bytes().to_vec()),
            Just("{\"é\":\"🦀\"}".as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn any_split_of_any_bytes_gives_the_same_events(
            bytes in stream(),
            sizes in prop::collection::vec(1usize..7, 0..200),
            limit in prop_oneof![Just(1usize << 16), 4usize..40],
        ) {
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = bytes.as_slice();
            for size in sizes {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let whole = events(limit, &[&bytes]);
            prop_assert_eq!(&events(limit, &pieces), &whole);
            let singles: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&events(limit, &singles), &whole);
        }

        #[test]
        fn what_is_written_as_an_event_is_read_back(
            texts in prop::collection::vec("[^\r\n]{1,20}(\n[^\r\n]{0,10}){0,2}", 0..8),
        ) {
            let mut written = String::new();
            for text in &texts {
                for line in text.split('\n') {
                    written += &format!("data: {line}\n");
                }
                written.push('\n');
            }
            prop_assert_eq!(all(&written), texts);
        }
    }
}
