//! How requests are read, and which patterns they fit.

use proptest::prelude::*;

use super::*;
use crate::testing_cases::cases;

fn path(text: &str) -> Result<RequestPath, &'static str> {
    RequestLine::new("GET", text).path().cloned()
}

fn fits(pattern: &str, text: &str, reading: Reading) -> bool {
    let pattern = PathPattern::parse(pattern).unwrap();
    pattern.fits(&path(text).unwrap(), reading)
}

#[test]
fn e58_what_origins_read_differently_is_ambiguous() {
    for text in [
        "/api/../admin",
        "/api/./admin",
        "/api/..",
        "/.",
        "/api/%2e%2e/admin",
        "/api/%2E./admin",
        "/api/.%2e",
        "/api//admin",
        "//admin",
        "/api%2fadmin",
        "/api%2Fadmin",
        "/api/..;/admin",
        "/api;x=1/admin",
        "/api%3bx/admin",
        "/api\\..\\admin",
        "/api%5cadmin",
        "/api%00",
        "/api%0a",
        "/api/\u{1}",
        "/api\t",
        "/a b",
        "/api%7f",
        "/api/%252e%252e/admin",
        "/api/%252fadmin",
        "/api/%c0%ae%c0%ae/admin",
        "/api/%u002e",
        "/api/%",
        "/api/%2",
        "/api/%zz",
        "/api%3f/x",
        "/api%23/x",
        "/api#x",
        "/exämple",
        "/admin.",
        "/admin%20",
        "admin",
        "*",
        "http://a.com/",
    ] {
        assert!(path(text).is_err(), "{text}");
    }
}

#[test]
fn e58_what_is_read_in_one_way_is_decoded_and_the_query_left_out() {
    for (text, read) in [
        ("", "/"),
        ("?a=/../b", "/"),
        ("/", "/"),
        ("/a/b/", "/a/b/"),
        ("/a/%62?x=..;//", "/a/b"),
        ("/%41%7e/a+b", "/A~/a+b"),
        ("/caf%C3%A9", "/café"),
        ("/100%25", "/100%"),
        ("/main...feature", "/main...feature"),
        ("/.github/x.y", "/.github/x.y"),
        ("/a@b:c,d!$&'()*", "/a@b:c,d!$&'()*"),
    ] {
        assert_eq!(path(text).unwrap().as_str(), read, "{text}");
    }
}

#[test]
fn patterns_fit_whole_segments() {
    for (pattern, text, narrow, wide) in [
        ("/a", "/a", true, true),
        ("/a", "/a/", false, true),
        ("/a", "/A", false, true),
        ("/a/", "/a", false, true),
        ("/a", "/ab", false, false),
        ("/a", "/a/b", false, false),
        ("/", "/", true, true),
        ("/", "/a", false, false),
        ("/a/*", "/a/b", true, true),
        ("/a/*", "/a/", false, false),
        ("/a/*", "/a/b/c", false, false),
        ("/a/*/c", "/a/b/c", true, true),
        ("/a/v*.json", "/a/v1.json", true, true),
        ("/a/v*.json", "/a/v.json", true, true),
        ("/a/v*.json", "/a/V1.JSON", false, true),
        ("/a/ab*ba", "/a/aba", false, false),
        ("/a/**", "/a/b/c", true, true),
        ("/a/**", "/a/", true, true),
        ("/a/**", "/a", false, true),
        ("/a/**", "/ab/c", false, false),
        ("/**", "/", true, true),
        ("/**", "/a/b", true, true),
        ("/%61", "/a", true, true),
        ("/a%2Ab", "/a*b", true, true),
        ("/a%2Ab", "/axb", false, false),
    ] {
        assert_eq!(
            fits(pattern, text, Reading::Narrow),
            narrow,
            "{pattern} {text}"
        );
        assert_eq!(fits(pattern, text, Reading::Wide), wide, "{pattern} {text}");
    }
}

#[test]
fn e45_junk_is_no_path_pattern() {
    for text in [
        "", "a", "*", "**", "/a**", "/**/b", "/a/**b", "/a*b*c", "//a", "/a//b", "/a//**", "/../a",
        "/a/.", "/a;b", "/a?b", "/a%2fb", "/a b", "/%zz", "/a#", "/é", "/a\n", "/a.",
    ] {
        assert!(PathPattern::parse(text).is_err(), "{text}");
    }
}

#[test]
fn methods_are_tokens_and_never_a_tunnel() {
    for method in ["", "G T", "GET,", "CONNECT", "connect", "GÉT"] {
        assert!(Requests::new().methods([method]).is_err(), "{method}");
    }
    let requests = Requests::new().methods(["get"]).unwrap();
    let ask = |method: &str, reading| requests.fits(&RequestLine::new(method, "/"), reading);
    assert_eq!(ask("GET", Reading::Narrow), Ok(true));
    assert_eq!(
        ask("get", Reading::Narrow),
        Ok(false),
        "an origin may not know it"
    );
    assert_eq!(ask("get", Reading::Wide), Ok(true), "an origin may know it");
    assert_eq!(ask("POST", Reading::Wide), Ok(false));
    assert!(ask("G T", Reading::Narrow).is_err());
}

#[test]
fn only_a_rule_that_names_paths_minds_an_ambiguous_one() {
    let request = RequestLine::new("GET", "/a/../b");
    let methods = Requests::new().methods(["GET"]).unwrap();
    assert_eq!(methods.fits(&request, Reading::Narrow), Ok(true));
    let paths = Requests::new().paths(["/**"]).unwrap();
    assert!(paths.fits(&request, Reading::Narrow).is_err());
}

/// The matcher that anybody can check by eye: stars tried against every split.
fn naive(pattern: &str, path: &str) -> bool {
    if pattern == "**" {
        return true;
    }
    let Some(first) = pattern.chars().next() else {
        return path.is_empty();
    };
    let rest = &pattern[first.len_utf8()..];
    if first == '*' {
        let end = path.find('/').unwrap_or(path.len());
        return (0..=end)
            .filter(|at| path.is_char_boundary(*at))
            .any(|at| naive(rest, &path[at..]));
    }
    path.strip_prefix(first)
        .is_some_and(|path| naive(rest, path))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_path_matcher_agrees_with_the_naive_one(
        pattern in "(/(a|b|a\\*|x\\*b)){0,3}(/|/\\*\\*)?",
        text in "(/(a|b|ab|xab)){0,3}/?",
    ) {
        let (Ok(pattern), Ok(path)) = (PathPattern::parse(&pattern), path(&text)) else {
            return Ok(());
        };
        let expected = naive(&pattern.to_string(), path.as_str());
        prop_assert_eq!(pattern.fits(&path, Reading::Narrow), expected);
        if expected {
            prop_assert!(pattern.fits(&path, Reading::Wide), "wide holds narrow");
        }
    }

    /// Twin of the fuzz target `request`.
    #[test]
    fn arbitrary_text_never_panics_and_what_is_read_is_plain(text in "(/|\\PC|[%./;\\\\a-f0-9])*") {
        if let Ok(path) = path(&text) {
            prop_assert!(path.as_str().starts_with('/'));
            prop_assert!(!path.as_str().contains(['\\', ';', '#', '?']));
            prop_assert!(!path.as_str().contains("//"));
            prop_assert!(path.segments().all(|segment| segment != "." && segment != ".."));
        }
        if let Ok(pattern) = PathPattern::parse(&text) {
            prop_assert_eq!(PathPattern::parse(&pattern.to_string()).unwrap(), pattern);
        }
    }

    /// However a path is encoded beyond need, it is read as the same path or refused.
    #[test]
    fn e58_encoding_changes_nothing(text in "(/[a-z.~]{1,4}){1,4}", which: u64) {
        let mut encoded = String::new();
        for (at, c) in text.char_indices() {
            if c != '/' && which >> (at % 64) & 1 == 1 {
                encoded += &format!("%{:02x}", c as u32);
            } else {
                encoded.push(c);
            }
        }
        prop_assert_eq!(path(&encoded), path(&text));
    }
}
