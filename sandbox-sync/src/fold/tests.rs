//! Names that are one and names that are not, and what holds for all names.

use proptest::prelude::*;

use super::*;

const CASE: Folding = Folding {
    case: true,
    form: false,
    rewrites: false,
};
const FORM: Folding = Folding {
    case: false,
    form: true,
    rewrites: false,
};
const BOTH: Folding = Folding {
    case: true,
    form: true,
    rewrites: false,
};

fn are_one(folding: Folding, [one, other]: [&[u8]; 2]) -> bool {
    folding.key(one) == folding.key(other)
}

#[test]
fn s10_s11_names_are_one_where_some_file_system_says_so() {
    for (one, other, case, form, both) in [
        ("README", "readme", true, false, true),
        ("a", "b", false, false, false),
        ("É", "é", true, false, true),
        ("\u{e9}", "e\u{301}", false, true, true),
        ("\u{c9}", "e\u{301}", false, false, true),
        ("Straße", "STRASSE", true, false, true),
        ("\u{1e9e}", "ss", true, false, true),
        ("ΣΑΣ", "σας", true, false, true),
        ("ı", "I", true, false, true),
        ("\u{212a}", "k", true, false, true),
        // Two marks in either order are one text.
        ("q\u{307}\u{323}", "q\u{323}\u{307}", false, true, true),
        // Hangul is composed by rule, not by table.
        ("\u{ac00}", "\u{1100}\u{1161}", false, true, true),
        // What HFS+ and ext4 leave out of a comparison.
        (".g\u{200c}it", ".git", false, true, true),
        (".G\u{200c}IT", ".git", false, false, true),
        // Compatible is not canonical: no file system takes these for one.
        ("\u{fb01}le\u{b2}", "\u{fb01}le2", false, false, false),
    ] {
        let names = [one.as_bytes(), other.as_bytes()];
        assert_eq!(are_one(CASE, names), case, "{one} and {other} by case");
        assert_eq!(are_one(FORM, names), form, "{one} and {other} by form");
        assert_eq!(are_one(BOTH, names), both, "{one} and {other} by both");
        assert!(!are_one(Folding::default(), names), "{one} and {other}");
    }
}

#[test]
fn s10_names_that_are_no_text_keep_their_bytes() {
    for name in [&b"\xff"[..], b"A\xc3", b"\xed\xa0\x80B"] {
        assert_eq!(BOTH.key(name), name);
    }
}

#[test]
fn s10_s11_each_character_is_one_with_its_cases_and_forms() {
    for character in '\0'..=char::MAX {
        let text = character.to_string();
        // Most have one case and one form.
        if character.to_lowercase().eq([character])
            && character.to_uppercase().eq([character])
            && text.nfd().eq([character])
            && text.nfc().eq([character])
        {
            continue;
        }
        let key = BOTH.key(text.as_bytes());
        let forms: [String; 5] = [
            character.to_lowercase().collect(),
            character.to_uppercase().collect(),
            text.nfd().collect(),
            text.nfc().collect(),
            String::from_utf8(key.to_vec()).unwrap(),
        ];
        for form in forms {
            assert_eq!(BOTH.key(form.as_bytes()), key, "{character:?} as {form:?}");
        }
    }
}

#[test]
fn s10_s11_the_longest_names_cost_little() {
    use crate::path::MAX_NAME;
    // The character that grows most, marks that have to be put in order, and Hangul.
    for unit in [
        "\u{390}",
        "\u{323}\u{307}",
        "\u{d7a3}",
        "\u{1d160}",
        "\u{fb03}",
    ] {
        let name = unit.repeat(MAX_NAME / unit.len());
        let key = BOTH.key(name.as_bytes());
        assert!(key.len() <= 5 * MAX_NAME, "{unit:?}: {}", key.len());
    }
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z._]{1,12}",
        "[aAeE\u{301}\u{323}\u{e9}\u{c9}\u{df}\u{1e9e}\u{130}\u{131}\u{200c}\u{3c2}\u{3a3}]{1,8}",
        "\\PC{1,12}",
    ]
    // The one mark whose capital is a letter: what is in order before is not afterwards.
    .prop_filter("the iota subscript", |name| !name.contains('\u{345}'))
}

proptest! {
    #[test]
    fn s10_s11_a_key_is_the_key_of_all_that_is_one_with_a_name(name in any_name()) {
        for folding in [CASE, FORM, BOTH] {
            let key = folding.key(name.as_bytes());
            prop_assert_eq!(&folding.key(&key), &key, "its own key");
        }
        let key = BOTH.key(name.as_bytes());
        // Forms first: a change of case may part marks that were not in order.
        let ordered: String = name.nfd().collect();
        for other in [ordered.to_uppercase().nfc().collect(), ordered.to_lowercase()] {
            prop_assert_eq!(&BOTH.key(other.as_bytes()), &key, "as {}", other);
        }
    }

    #[test]
    fn s10_s11_both_take_for_one_whatever_either_does(one in any_name(), other in any_name()) {
        let names = [one.as_bytes(), other.as_bytes()];
        if are_one(CASE, names) || are_one(FORM, names) {
            prop_assert!(are_one(BOTH, names));
        }
        prop_assert_eq!(are_one(Folding::default(), names), one == other);
    }

    #[test]
    fn s10_any_bytes_have_a_key(bytes in prop::collection::vec(any::<u8>(), 1..40)) {
        for folding in [Folding::default(), CASE, FORM, BOTH] {
            prop_assert!(folding.key(&bytes).len() <= 8 * bytes.len());
        }
    }
}
