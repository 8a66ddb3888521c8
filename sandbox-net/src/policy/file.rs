//! Rules as they are written down, in TOML and in JSON.
//!
//! ```toml
//! mode = "deny"                      # or "allow"; "deny" if it is left out
//! allow = [
//!     "*.example.com",
//!     { host = "api.example.net", methods = ["GET"], paths = ["/repos/**"] },
//! ]
//! block = ["tracker.example.com"]
//! limit = ["**.example.com", "api.example.net"]   # no limit if it is left out
//! ```
//!
//! A file is read whole or not at all: one wrong rule, one unknown key, and the policy in force stays as it is.
//! The error says where (line and column, both from 1; in JSON where the wrong value ends), which rule, and what
//! was expected.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap,
};

use crate::{
    Error,
    policy::{Clause, Layers, Mode, Requests, RuleSet, rules::List},
};

impl RuleSet {
    /// Reads rules from TOML:
    ///
    /// ```
    /// let rules = sandbox_net::policy::RuleSet::from_toml(r#"
    ///     mode = "deny"
    ///     allow = ["*.example.com", { host = "api.example.net", methods = ["GET"], paths = ["/repos/**"] }]
    ///     block = ["tracker.example.com"]
    /// "#)?;
    /// assert_eq!(rules.allowed()[1].to_string(), "api.example.net GET /repos/**");
    ///
    /// let error = sandbox_net::policy::RuleSet::from_toml("block = []\nallow = ['a.com', '*.com']").unwrap_err();
    /// assert_eq!(error.to_string(), "cannot read TOML, line 2, column 19");
    /// # Ok::<(), sandbox_net::Error>(())
    /// ```
    ///
    /// `limit` is a third list; keys that are left out are an empty list, no limit, and the mode `deny`.
    ///
    /// # Errors
    ///
    /// `Invalid` with line and column; the source says which rule, and what is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        from_toml(text)
    }

    /// Reads rules from JSON, in the same form as [`from_toml`](Self::from_toml).
    ///
    /// # Errors
    ///
    /// `Invalid` with line and column; the source says which rule, and what is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        from_json(text)
    }

    /// Writes the rules as TOML; reading it gives the same rules.
    pub fn to_toml(&self) -> String {
        to_toml(self)
    }

    /// Writes the rules as JSON; reading it gives the same rules.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

impl Layers {
    /// Reads layers from TOML: tables `organization`, `user` and `sandbox`, each as [`RuleSet::from_toml`] reads it.
    ///
    /// # Errors
    ///
    /// `Invalid` with line and column; the source says which rule, and what is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        from_toml(text)
    }

    /// Reads layers from JSON, in the same form as [`from_toml`](Self::from_toml).
    ///
    /// # Errors
    ///
    /// `Invalid` with line and column; the source says which rule, and what is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        from_json(text)
    }

    /// Writes the layers as TOML; reading it gives the same layers.
    pub fn to_toml(&self) -> String {
        to_toml(self)
    }

    /// Writes the layers as JSON; reading it gives the same layers.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let (line, column) = position(text, at);
        unreadable("TOML", (line, column), error.message())
    })
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        let whole = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = whole.strip_suffix(&place).unwrap_or(&whole);
        unreadable("JSON", (error.line(), error.column()), message)
    })
}

fn to_toml(value: &impl Serialize) -> String {
    toml::to_string_pretty(value).expect("tables, lists and strings have a TOML form")
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("tables, lists and strings have a JSON form")
}

fn unreadable(form: &str, (line, column): (usize, usize), message: &str) -> Error {
    let operation = format!("read {form}, line {line}, column {column}");
    Error::invalid(operation, message.trim_end().to_owned())
}

/// Returns line and column of a byte, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or(before);
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// A rule set as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    mode: Mode,
    #[serde(default, deserialize_with = "allow")]
    allow: Vec<Clause>,
    #[serde(default, deserialize_with = "block")]
    block: Vec<Clause>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "limit"
    )]
    limit: Option<Vec<Clause>>,
}

fn allow<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<Clause>, D::Error> {
    list.deserialize_seq(Clauses(List::Allow))
}

fn block<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<Clause>, D::Error> {
    list.deserialize_seq(Clauses(List::Block))
}

fn limit<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<Clause>>, D::Error> {
    list.deserialize_seq(Clauses(List::Limit)).map(Some)
}

impl<'de> Deserialize<'de> for RuleSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        let mut rules = Self::new(written.mode);
        if written.limit.is_some() {
            rules = rules.limited();
        }
        let lists = [
            (List::Allow, written.allow),
            (List::Block, written.block),
            (List::Limit, written.limit.unwrap_or_default()),
        ];
        for (list, clauses) in lists {
            for clause in clauses {
                rules.add(list, clause);
            }
        }
        Ok(rules)
    }
}

impl Serialize for RuleSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            mode: self.mode,
            allow: self.allow.clone(),
            block: self.block.clone(),
            limit: self.limit.clone(),
        };
        written.serialize(serializer)
    }
}

impl Serialize for Clause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(requests) = &self.requests else {
            return serializer.collect_str(&self.pattern);
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("host", &self.pattern.to_string())?;
        let methods: Vec<_> = requests.method_list().collect();
        if !methods.is_empty() {
            map.serialize_entry("methods", &methods)?;
        }
        let paths: Vec<_> = requests
            .path_list()
            .iter()
            .map(ToString::to_string)
            .collect();
        if !paths.is_empty() {
            map.serialize_entry("paths", &paths)?;
        }
        map.end()
    }
}

/// Reads a list of rules.
struct Clauses(List);

impl<'de> Visitor<'de> for Clauses {
    type Value = Vec<Clause>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {} rules", self.0.as_str())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut clauses = Vec::new();
        loop {
            let number = clauses.len() + 1;
            let place = Place {
                list: self.0,
                number,
            };
            match list.next_element_seed(place)? {
                Some(clause) => clauses.push(clause),
                None => return Ok(clauses),
            }
        }
    }
}

/// Reads one rule, which is a host or a table.
#[derive(Clone, Copy)]
struct Place {
    list: List,
    number: usize,
}

impl Place {
    fn wrong<E: de::Error>(self, error: &Error) -> E {
        self.said(&Chain(error).to_string())
    }

    fn unknown<E: de::Error>(self, key: &str) -> E {
        let key = key.escape_debug();
        let keys = "expected one of `host`, `methods`, `paths`";
        self.said(&format!("unknown field `{key}`, {keys}"))
    }

    fn said<E: de::Error>(self, what: &str) -> E {
        let list = self.list.as_str();
        E::custom(format_args!("{list} rule {}: {what}", self.number))
    }
}

impl<'de> DeserializeSeed<'de> for Place {
    type Value = Clause;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Clause, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place {
    type Value = Clause;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rule {} to be a host such as \"*.example.com\", or a table with `host` and `methods` or `paths`",
            self.list.as_str(),
            self.number
        )
    }

    fn visit_str<E: de::Error>(self, host: &str) -> Result<Clause, E> {
        let read = self.list.read(host, None);
        read.map_err(|error| self.wrong(&error))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Clause, A::Error> {
        let mut host: Option<String> = None;
        let mut lists: [Option<Vec<String>>; 2] = [None, None];
        while let Some(key) = map.next_key::<String>()? {
            let again = match key.as_str() {
                "host" => host.replace(map.next_value()?).is_some(),
                "methods" => lists[0].replace(map.next_value()?).is_some(),
                "paths" => lists[1].replace(map.next_value()?).is_some(),
                _ => return Err(self.unknown(&key)),
            };
            if again {
                return Err(self.said(&format!("`{key}` stands twice")));
            }
        }
        let host = host.ok_or_else(|| self.said("missing field `host`"))?;
        let [methods, paths] = lists.map(Option::unwrap_or_default);
        let requests = Requests::new()
            .methods(methods.iter().map(String::as_str))
            .and_then(|requests| requests.paths(paths.iter().map(String::as_str)));
        let clause = requests.and_then(|requests| self.list.read(&host, Some(requests)));
        clause.map_err(|error| self.wrong(&error))
    }
}

/// An error with its chain of reasons in one line, since serde keeps only the text.
struct Chain<'a>(&'a Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
