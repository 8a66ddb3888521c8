//! The published cases of AWS's signing test suite: what a client signs with a placeholder has to come out as they say.

use http::Request;

use super::*;

const PLACEHOLDER: &str = "sbxplaceholderaaaa";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const DATE_OF_ALL: &str = "20150830T123600Z";
const SCOPE: &str = "20150830/us-east-1/service/aws4_request";
const HOST: &str = "example.amazonaws.com";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const FORM: &str = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e";
const TOKEN_OF_SUITE: &str = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";

/// A case: the request's line, its headers besides host and date; the path, the query, the lines besides those two
/// and the names as the suite's canonical request has them; the suite's signature.
struct Case {
    name: &'static str,
    line: (&'static str, &'static str),
    headers: &'static [(&'static str, &'static str)],
    way: (&'static str, &'static str),
    /// Before and behind the line of the host, and their names.
    lines: (&'static str, &'static str),
    names: &'static str,
    body: &'static [u8],
    signature: &'static str,
}

const PLAIN: Case = Case {
    name: "get-vanilla",
    line: ("GET", "/"),
    headers: &[],
    way: ("/", ""),
    lines: ("", ""),
    names: "host;x-amz-date",
    body: b"",
    signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
};

const fn path(
    name: &'static str,
    sent: &'static str,
    way: (&'static str, &'static str),
    signature: &'static str,
) -> Case {
    Case {
        name,
        line: ("GET", sent),
        way,
        signature,
        ..PLAIN
    }
}

const CASES: [Case; 14] = [
    PLAIN,
    Case {
        name: "post-vanilla",
        line: ("POST", "/"),
        signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ..PLAIN
    },
    path(
        "get-vanilla-query-order-key-case",
        "/?Param2=value2&Param1=value1",
        ("/", "Param1=value1&Param2=value2"),
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    path(
        "get-slashes-normalized",
        "//example//",
        ("/example/", ""),
        "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
    ),
    path(
        "get-slashes-unnormalized",
        "//example//",
        ("//example//", ""),
        "87cca117541a147f6df867677d98a7d80dff226d2bfca9e4ffa899665623c7e5",
    ),
    path(
        "get-relative-relative-normalized",
        "/example1/example2/../..",
        ("/", ""),
        PLAIN.signature,
    ),
    path(
        "get-relative-normalized",
        "/example/..",
        ("/", ""),
        PLAIN.signature,
    ),
    path(
        "get-slash-dot-slash-normalized",
        "/./",
        ("/", ""),
        PLAIN.signature,
    ),
    path("get-slash-normalized", "//", ("/", ""), PLAIN.signature),
    path(
        "get-space-normalized",
        "/example%20space/",
        ("/example%20space/", ""),
        "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
    ),
    path(
        "get-utf8",
        "/%E1%88%B4",
        ("/%E1%88%B4", ""),
        "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    ),
    Case {
        name: "get-header-value-trim",
        headers: &[("my-header1", " value1"), ("my-header2", " \"a   b   c\"")],
        lines: ("", "my-header1:value1\nmy-header2:\"a b c\"\n"),
        names: "host;my-header1;my-header2;x-amz-date",
        signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ..PLAIN
    },
    Case {
        name: "get-header-key-duplicate",
        headers: &[
            ("my-header1", "value2"),
            ("my-header1", "value2"),
            ("my-header1", "value1"),
        ],
        lines: ("", "my-header1:value2,value2,value1\n"),
        names: "host;my-header1;x-amz-date",
        signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        ..PLAIN
    },
    Case {
        name: "post-x-www-form-urlencoded",
        line: ("POST", "/"),
        headers: &[
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-length", "13"),
            ("x-amz-content-sha256", FORM),
        ],
        lines: (
            "content-length:13\ncontent-type:application/x-www-form-urlencoded\n",
            "x-amz-content-sha256:9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e\n",
        ),
        names: "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
        body: b"Param1=value1",
        signature: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
        ..PLAIN
    },
];

/// A request as a client sends it that has the placeholder for both keys.
fn signed(case: &Case) -> Parts {
    let (method, uri) = case.line;
    let (path, query) = case.way;
    let (before, behind) = case.lines;
    let payload = if case.body.is_empty() { EMPTY } else { FORM };
    let canonical = format!(
        "{method}\n{path}\n{query}\n{before}host:{HOST}\n{behind}x-amz-date:{DATE_OF_ALL}\n\n{}\n{payload}",
        case.names
    );
    let signature = signature(PLACEHOLDER, (DATE_OF_ALL, SCOPE), &canonical);
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in case.headers {
        request = request.header(*name, *value);
    }
    let request = request
        .header("host", HOST)
        .header(DATE, DATE_OF_ALL)
        .header(
            "authorization",
            authorization(PLACEHOLDER, case.names, &signature),
        );
    request.body(()).unwrap().into_parts().0
}

fn authorization(id: &str, names: &str, signature: &str) -> String {
    format!("{ALGORITHM} Credential={id}/{SCOPE}, SignedHeaders={names}, Signature={signature}")
}

fn keys(token: Option<&str>) -> Secret {
    let token = token.map(|token| format!(":{token}")).unwrap_or_default();
    Secret::new(format!("AKIDEXAMPLE:{SECRET}{token}")).unwrap()
}

/// What the proxy makes of it.
fn anew(head: &mut Parts, secret: &Secret, body: &[u8]) -> Result<String, Refusal> {
    let mut signing = Signing::begin(("aws", PLACEHOLDER, secret), head, 100).unwrap();
    head.headers.remove("authorization");
    signing.take_body(body, body);
    signing.finish(head, HOST)?;
    Ok(head.headers["authorization"].to_str().unwrap().to_owned())
}

#[test]
fn the_published_signatures_come_out() {
    for case in &CASES {
        let made = anew(&mut signed(case), &keys(None), case.body).unwrap();
        let published = authorization("AKIDEXAMPLE", case.names, case.signature);
        assert_eq!(made, published, "{}", case.name);
    }
}

#[test]
fn the_published_signature_with_a_session_token_comes_out() {
    let mut head = signed(&PLAIN);
    let made = anew(&mut head, &keys(Some(TOKEN_OF_SUITE)), b"").unwrap();
    let names = "host;x-amz-date;x-amz-security-token";
    let signature = "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8";
    assert_eq!(made, authorization("AKIDEXAMPLE", names, signature));
    assert_eq!(head.headers["x-amz-security-token"], TOKEN_OF_SUITE);
    assert!(head.headers["x-amz-security-token"].is_sensitive());
}

#[test]
fn paths_that_are_escaped_twice_are_understood() {
    // The suite has these two without a signature.
    for (sent, twice) in [
        (
            "/functions/arn%3Aaws%3Alambda/invocations",
            "/functions/arn%253Aaws%253Alambda/invocations",
        ),
        (
            "/test/@connections/JBDvjfGEIAMCERw%3D",
            "/test/%40connections/JBDvjfGEIAMCERw%253D",
        ),
    ] {
        let uri = sent.parse().unwrap();
        let mut found = ways(&uri);
        assert!(found.any(|(path, _)| path == twice), "{sent}");
    }
}

#[test]
fn what_the_client_signed_is_what_is_signed() {
    let refused = |change: &dyn Fn(&mut Parts)| {
        let mut head = signed(&PLAIN);
        change(&mut head);
        let refusal = anew(&mut head, &keys(None), b"").unwrap_err();
        assert_eq!(
            (refusal.reason(), refusal.credential()),
            ("signature", Some("aws"))
        );
        assert!(
            !head.headers.contains_key("authorization"),
            "nothing was put in"
        );
    };
    refused(&|head| head.uri = "/other".parse().unwrap());
    refused(&|head| head.method = Method::DELETE);
    refused(&|head| drop(head.headers.remove(DATE)));
    let streaming = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
    refused(&|head| drop(head.headers.insert(PAYLOAD, streaming.parse().unwrap())));
    let refusal = anew(&mut signed(&PLAIN), &keys(None), b"another body").unwrap_err();
    assert_eq!(refusal.reason(), "signature");
}

#[test]
fn a_header_that_does_not_reach_the_host_is_not_signed() {
    let case = Case {
        headers: &[("te", "trailers")],
        lines: ("", "te:trailers\n"),
        names: "host;te;x-amz-date",
        ..PLAIN
    };
    let made = anew(&mut signed(&case), &keys(None), b"").unwrap();
    assert_eq!(
        made,
        authorization("AKIDEXAMPLE", PLAIN.names, PLAIN.signature)
    );
}

#[test]
fn other_signatures_are_not_taken_for_ours() {
    let whole = authorization(PLACEHOLDER, "host", "00");
    let read = |text: &str| {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
        Claim::read(&headers, PLACEHOLDER).is_some()
    };
    assert!(read(&whole));
    for other in [
        whole.replace(PLACEHOLDER, "AKIDEXAMPLE"),
        whole.replace("Credential=", "Credential=x"),
        whole.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        whole.replace("/service", ""),
        whole.replace("aws4_request", "other"),
        whole.replace(", Signature=00", ""),
        format!("{whole}, Signature=11"),
        format!("{whole}, Other=1"),
    ] {
        assert!(!read(&other), "{other}");
    }
}

#[test]
fn keys_have_their_form() {
    for text in [
        "AKID",
        "AKID:",
        ":secret",
        "AK ID:secret",
        "AKID:secret:",
        "AKID:secret:t\u{f6}ken",
    ] {
        assert!(!is_keys(&Secret::new(text).unwrap()), "{text}");
    }
    assert!(is_keys(&keys(None)) && is_keys(&keys(Some("token=="))));
}
