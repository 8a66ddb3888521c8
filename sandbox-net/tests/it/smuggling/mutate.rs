//! Requests that somebody on the way may read in another way than somebody else, made from a seed.

/// How requests name the origin.
pub(super) struct Form {
    /// What stands before the path.
    pub(super) before_path: String,
    pub(super) host: String,
}

/// A stream of numbers that is the same each time (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A request to be.
struct Draft {
    method: &'static str,
    version: &'static str,
    /// Lines with their ends.
    fields: String,
    body: String,
}

impl Draft {
    fn post(fields: impl Into<String>, body: impl Into<String>) -> Self {
        Self {
            method: "POST",
            version: "HTTP/1.1",
            fields: fields.into(),
            body: body.into(),
        }
    }
}

/// Spellings of a coding, of which few are one.
const CODINGS: [&str; 20] = [
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    "Transfer-Encoding:\tchunked\r\n",
    "Transfer-Encoding:\u{b}chunked\r\n",
    "Transfer-Encoding:\u{c}chunked\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunkedx\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: identity, chunked\r\n",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: chunked;q=0\r\n",
    "Transfer-Encoding: ,chunked\r\n",
    "Transfer-Encoding: \0chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "\"Transfer-Encoding\": chunked\r\n",
];

/// Makes request number `n`, its connection's last words included: a request which says that it is the last one.
pub(super) fn mutant(n: usize, form: &Form, random: &mut Random) -> Vec<u8> {
    let hidden = format!("GET /hidden HTTP/1.1\r\nHost: evil.test\r\nX-Id: hidden-{n}\r\n\r\n");
    let draft = match n % 8 {
        0 => both(&hidden, random),
        1 => lengths(&hidden, random),
        2 => codings(&hidden, random),
        3 => line_ends(&hidden, random),
        4 => chunks(&hidden, random),
        5 => bodies(&hidden, random),
        6 => look_alikes(&hidden, random),
        _ => pipelined(&hidden, random),
    };
    let Form { before_path, host } = form;
    let target = match draft.method {
        "CONNECT" => "denied.test:443".to_owned(),
        _ => format!("{before_path}/{n}"),
    };
    let mut own = [format!("Host: {host}\r\nX-Id: {n}\r\n"), draft.fields];
    if random.below(2) == 0 {
        own[1] = recased(&own[1], random);
    }
    if random.below(2) == 0 {
        own.swap(0, 1);
    }
    format!(
        "{} {target} {}\r\n{}\r\n{}GET {before_path}/end HTTP/1.1\r\nHost: {host}\r\nX-Id: end-{n}\r\n\
         Connection: close\r\n\r\n",
        draft.method,
        draft.version,
        own.concat(),
        draft.body
    )
    .into_bytes()
}

fn recased(text: &str, random: &mut Random) -> String {
    let flip = |c: char| match random.below(3) {
        0 => c.to_ascii_uppercase(),
        _ => c.to_ascii_lowercase(),
    };
    text.chars().map(flip).collect()
}

/// E09.
fn both(hidden: &str, random: &mut Random) -> Draft {
    let body = random
        .pick(&["0\r\n\r\n", "1\r\nx\r\n0\r\n\r\n", ""])
        .to_owned()
        + hidden;
    let length = random.pick(&[0, 4, 5, body.len(), body.len() + 9]);
    let length = format!("Content-Length: {length}\r\n");
    let coding = random.pick(&CODINGS);
    let fields = match random.below(3) {
        0 => format!("{length}{coding}"),
        1 => format!("{coding}{length}"),
        _ => format!("{length}X-Between: 1\r\n{coding}"),
    };
    Draft::post(fields, body)
}

/// E10.
fn lengths(hidden: &str, random: &mut Random) -> Draft {
    let all = 5 + hidden.len();
    let fields = match random.below(14) {
        0 => format!("Content-Length: 5\r\nContent-Length: {all}"),
        1 => format!("Content-Length: {all}\r\nContent-Length: 5"),
        2 => format!("Content-Length: {all}\r\nContent-Length: {all}"),
        3 => format!("Content-Length: 5, {all}"),
        4 => format!("Content-Length: {all}, {all}"),
        5 => format!("Content-Length: +{all}"),
        6 => format!("Content-Length: -{all}"),
        7 => format!("Content-Length: 0x{all:x}"),
        8 => format!("Content-Length: {all}.0"),
        9 => format!("Content-Length: 5 {all}"),
        10 => format!("Content-Length: \"{all}\""),
        11 => "Content-Length: 18446744073709551621".to_owned(),
        12 => "Content-Length:".to_owned(),
        // One reading, odd as it looks.
        _ => format!("Content-Length: \t 000{all} "),
    };
    Draft::post(fields + "\r\n", format!("hello{hidden}"))
}

/// E11.
fn codings(hidden: &str, random: &mut Random) -> Draft {
    let body = random.pick(&["0\r\n\r\n", "1\r\nx\r\n0\r\n\r\n", "0\n\n"]);
    Draft::post(random.pick(&CODINGS), format!("{body}{hidden}"))
}

/// E11: folds and bare line ends.
fn line_ends(hidden: &str, random: &mut Random) -> Draft {
    let all = 5 + hidden.len();
    let fields = random.pick(&[
        "X-A: b\r\n Transfer-Encoding: chunked\r\n",
        "X-A: b\r\n\tTransfer-Encoding: chunked\r\n",
        "X-A: b\nTransfer-Encoding: chunked\r\n",
        "X-A: b\rTransfer-Encoding: chunked\r\n",
        "X-A: b\r\r\nTransfer-Encoding: chunked\r\n",
        "X-A: b\0Transfer-Encoding: chunked\r\n",
        "X-A: b\n\nGET /hidden HTTP/1.1\r\nHost: evil.test\r\n",
        "X-A: b\r\rGET /hidden HTTP/1.1\r\nHost: evil.test\r\n",
        "X-A: b\n\r\n",
        "X-A\r\n: b\r\n",
        "X-A\nTransfer-Encoding: chunked\r\n",
        ": b\r\nTransfer-Encoding: chunked\r\n",
    ]);
    let length = match random.below(3) {
        0 => format!("Content-Length: {all}\r\n"),
        1 => format!("Content-Length:\r\n {all}\r\n"),
        _ => String::new(),
    };
    Draft::post(format!("{fields}{length}"), format!("hello{hidden}"))
}

/// E12.
fn chunks(hidden: &str, random: &mut Random) -> Draft {
    let body = random.pick(&[
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0000000000000000000005\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n00\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 9\r\nX-Id: hidden\r\n\r\n",
        "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nX-A: b\n\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0;x\r\n\r\n",
    ]);
    let fields = random.pick(&[
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTrailer: Host, Content-Length\r\n",
        "Transfer-Encoding: chunked\r\nTE: trailers\r\n",
        "Transfer-Encoding: CHUNKED\r\nConnection: Transfer-Encoding\r\n",
    ]);
    Draft {
        version: random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]),
        ..Draft::post(fields, format!("{body}{hidden}"))
    }
}

/// E13.
fn bodies(hidden: &str, random: &mut Random) -> Draft {
    let length = hidden.len();
    let (fields, body) = match random.below(5) {
        0 => (format!("Content-Length: {length}\r\n"), hidden.to_owned()),
        1 => (
            "Transfer-Encoding: chunked\r\n".to_owned(),
            format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n"),
        ),
        2 => (String::new(), hidden.to_owned()),
        3 => ("Content-Length: 0\r\n".to_owned(), hidden.to_owned()),
        // It never comes whole.
        _ => (
            format!("Content-Length: {}\r\n", length + 9999),
            hidden.to_owned(),
        ),
    };
    Draft {
        method: random.pick(&["GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND"]),
        version: random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]),
        ..Draft::post(fields, body)
    }
}

/// E14.
fn look_alikes(hidden: &str, random: &mut Random) -> Draft {
    let body = format!("0\r\n\r\n{hidden}");
    let look_alike = random.pick(&[
        "Transfer_Encoding: chunked\r\n",
        "Transfer_Encoding: chunked\r\nTransfer_Encoding: chunked\r\n",
        "Content_Length: 5\r\n",
        "Content_Length: 0\r\n",
        "Content-Encoding: chunked\r\n",
        "X-Transfer-Encoding: chunked\r\n",
        "Transfer.Encoding: chunked\r\n",
        "Transfer-Encoding-: chunked\r\n",
        "TransferEncoding: chunked\r\n",
        "TE: chunked\r\n",
    ]);
    let length = format!("Content-Length: {}\r\n", body.len());
    match random.below(3) {
        0 => Draft::post(format!("{length}{look_alike}"), body),
        1 => Draft::post(format!("{look_alike}{length}"), body),
        // No length at all: what follows is a request of its own.
        _ => Draft::post(look_alike, body),
    }
}

/// E15, and headers that make what follows something else.
fn pipelined(hidden: &str, random: &mut Random) -> Draft {
    let all = 5 + hidden.len();
    let length = format!("Content-Length: {all}\r\n");
    let body = format!("hello{hidden}");
    match random.below(9) {
        0 => Draft::post("Content-Length: 5\r\n", body),
        1 => Draft {
            method: "CONNECT",
            ..Draft::post("", hidden)
        },
        2 => Draft {
            method: "CONNECT",
            ..Draft::post(length, body)
        },
        3 => Draft {
            method: "GET",
            ..Draft::post("Connection: Upgrade\r\nUpgrade: h2c\r\n", hidden)
        },
        4 => Draft::post(format!("Upgrade: websocket\r\n{length}"), body),
        5 => Draft::post(format!("Expect: 100-continue\r\n{length}"), body),
        6 => Draft::post(format!("Connection: Content-Length\r\n{length}"), body),
        7 => Draft::post(format!("Connection: keep-alive, Host\r\n{length}"), body),
        _ => Draft::post(
            format!("Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\n{length}"),
            body,
        ),
    }
}
