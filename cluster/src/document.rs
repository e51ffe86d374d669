//! The text of a file to the documents in it.
//!
//! Documents are cut apart before they are parsed, so that one that is not YAML takes no other with it.

use std::{cell::Cell, convert::identity, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::parallel;

/// How many documents one file may hold.
pub const MAX_DOCUMENTS: usize = 100_000;

/// How many scalars, lists and maps one document may hold.
const MAX_NODES: usize = 4_000_000;

/// One document of a file.
#[derive(Debug)]
pub struct Document<T = Value> {
    /// Which document of the file, from 1; empty ones are not counted.
    pub number: usize,
    /// What was read in it, or what the parser said, with the line in the file.
    pub value: Result<T, String>,
}

/// The documents of a YAML or JSON text, in order; those that hold nothing are left out.
pub fn documents(text: &str) -> Vec<Document> {
    read_documents(text, identity)
}

/// What is read in each of the [`documents`] of a text.
pub fn read_documents<T: Send>(text: &str, read: impl Fn(Value) -> T + Sync) -> Vec<Document<T>> {
    let values = parallel::map(&parts(text), |&(first_line, part)| match parse(part, first_line) {
        Ok(Value::Null) => None,
        value => Some(value.map(&read)),
    });
    let values = values.into_iter().flatten().enumerate();
    values.map(|(before, value)| Document { number: before + 1, value }).collect()
}

/// Cuts at every line that begins with `---`. Nothing but a document marker can stand there in YAML: text inside a
/// document may not begin a line with it.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > start {
            parts.push((start_line, &text[start..at]));
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts.retain(|(_, part)| !holds_nothing(part));
    parts
}

fn holds_nothing(part: &str) -> bool {
    part.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "---" || line == "..."
    })
}

/// JSON is YAML, and takes much less time where it is read as what it is. What is wrong with it YAML says better, and so it
/// does where there is more than `most` of it.
fn json(part: &str, most: usize) -> Option<Value> {
    let mut rest = part;
    let is_before_it = |line: &str| {
        let line = line.trim_end();
        // A carriage return alone ends a line of YAML, too.
        !line.contains('\r') && (line.is_empty() || line == "---" || line.starts_with('#'))
    };
    while let Some((_, after)) = rest.split_once('\n').filter(|(line, _)| is_before_it(line)) {
        rest = after;
    }
    // Nearly all else is told from it by its first letter.
    if !rest.starts_with('{') {
        return None;
    }
    let mut text = serde_json::Deserializer::from_str(rest);
    let value = Distinct { left: &Cell::new(most) }.deserialize(&mut text).ok()?;
    text.end().ok().map(|()| value)
}

fn parse(part: &str, lines_before: usize) -> Result<Value, String> {
    json(part, MAX_NODES).map_or_else(|| yaml(part, lines_before), Ok)
}

fn yaml(part: &str, lines_before: usize) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        // A manifest is data, not a program: aliases are for brevity, not for making much out of little.
        budget: serde_saphyr::budget! {
            max_events: 8_000_000,
            max_nodes: MAX_NODES,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 16,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    let value = serde_saphyr::with_deserializer_from_str_with_options(part, options, |de| Value::deserialize(de));
    value.map_err(|error| {
        let text = error.without_snippet().to_string();
        let Some(at) = error.location() else { return text };
        let (line, column) = (at.line(), at.column());
        let here = format!("line {line} column {column}");
        let there = format!("line {} column {column}", line + lines_before as u64);
        if text.contains(&here) { text.replace(&here, &there) } else { format!("{there}: {text}") }
    })
}

/// Reads a value in which no key stands twice, of so many parts at most.
struct Distinct<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Distinct<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl Distinct<'_> {
    fn count<E: Error>(&self) -> Result<(), E> {
        self.left.set(self.left.get().checked_sub(1).ok_or_else(|| E::custom("too much"))?);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Distinct<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Self { left: self.left })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.count()?;
            if values.insert(key, entries.next_value_seed(Self { left: self.left })?).is_some() {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documents_are_cut_at_markers_and_empty_ones_are_not_counted() {
        let found = documents("# licence\n---\na: 1\n---\n---\n# nothing\n--- # second\nb: |\n  --- no marker\n...\n");

        let values: Vec<_> = found.iter().map(|document| (document.number, document.value.clone().unwrap())).collect();
        assert_eq!(values, [(1, serde_json::json!({"a": 1})), (2, serde_json::json!({"b": "--- no marker\n"}))]);
    }

    #[test]
    fn a_document_that_is_not_yaml_is_told_with_its_line_in_the_file_and_takes_no_other_with_it() {
        let found = documents("a: 1\n---\nb: [1\nc: 2\n---\nd: 4\n");

        assert_eq!(found.len(), 3);
        assert!(found[0].value.is_ok() && found[2].value.is_ok());
        let error = found[1].value.clone().unwrap_err();
        assert!(error.contains("line 4") || error.contains("line 3"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn aliases_cannot_make_much_out_of_little() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            bomb.push_str(&format!("a{level}: &a{level} [{below}*a{}]\n", level - 1));
        }

        let found = documents(&bomb);

        assert!(found[0].value.is_err());
    }

    #[test]
    fn deep_nesting_is_refused_without_exhausting_the_stack() {
        let found = documents(&format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000)));

        assert!(found[0].value.is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error() {
        assert!(documents("a: 1\na: 2\n")[0].value.is_err());
    }

    #[test]
    fn json_is_yaml() {
        let value = serde_json::json!({"a": [1, -1, 1.5, null, true, "x", {"b": "\u{1f600}"}]});

        for before in ["", "# made\n---\n# by a program\n\n", "---\n"] {
            let text = format!("{before}{value:#}\n");
            assert_eq!(documents(&text)[0].value, Ok(value.clone()));
            assert_eq!((json(&text, MAX_NODES), yaml(&text, 0)), (Some(value.clone()), Ok(value.clone())));
        }
    }

    #[test]
    fn of_json_as_of_yaml_there_is_a_limit() {
        let text = r#"{"a": [0, {}], "b": null}"#;

        assert!(json(text, 7).is_some());
        assert!(json(text, 6).is_none());
    }

    #[test]
    fn what_only_begins_like_json_is_yaml() {
        for text in ["# one\r{\"a\": 1}\n{\"b\": 2}\n", "%TAG x\n{\"a\": 1}\n", "--- {\"a\": 1}\n"] {
            assert_eq!(json(text, MAX_NODES), None);
        }
        assert_eq!(documents("{a: 1, b: [x, ], c: }")[0].value, Ok(serde_json::json!({"a": 1, "b": ["x"], "c": null})));
    }

    #[test]
    fn json_that_is_wrong_is_told_as_yaml_is() {
        for text in ["{\"a\": 1, \"a\": 2}", "{\"a\": {\"b\": 1, \"b\": 2}}", "---\n{\"a\": 1,\n\"b\": [1}"] {
            let error = documents(text)[0].value.clone().unwrap_err();
            assert!(error.contains("line "), "{error}");
        }
    }

    /// Any value that JSON can say, without fractions: these have more than one spelling.
    fn any_value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[ -~]{0,12}|\\PC{0,6}|[\n\t\r\\\\\"]{1,4}|null|true|~|0x1|1e3|- a|a: b".prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{1,8}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_as_json_is_what_yaml_would_have_read(value in any_value()) {
            let text = serde_json::json!({ "spec": value }).to_string();

            prop_assert_eq!(json(&text, MAX_NODES).ok_or_else(String::new), yaml(&text, 0));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}|[-a:\\[\\]{}&*!|>%@\\n \"']{0,120}") {
            let _ = documents(&text);
        }
    }
}
