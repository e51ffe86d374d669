//! `docs/parity.md` says what is proved, and this test that it tells the truth.
//!
//! `UPDATE=1 cargo test -p ferrogate-integration --test parity` fills the test column from the tree. States are written
//! by hand: only a person can say whether the tests of an item prove all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ferrogate_integration::workspace;

/// Number of an item, such as M-044; ordered as on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    list: usize,
    number: u16,
}

/// The letters of the lists and the numbers each has, in the order of the page.
const LISTS: [(char, &[RangeInclusive<u16>]); 3] = [
    ('M', &[1..=155]),
    ('N', &[1..=15, 20..=35, 40..=57, 60..=65, 70..=79, 80..=93, 100..=114, 120..=125]),
    ('L', &[1..=160]),
];

impl Item {
    /// Reads `M-044`, in the letters of a page or, with an underscore, of a test.
    fn parse(text: &str, separator: char) -> Option<Self> {
        let (letter, number) = text.split_once(separator)?;
        let letter = letter.chars().next().filter(|_| letter.len() == 1)?;
        let list = LISTS.iter().position(|(known, _)| match separator {
            '-' => *known == letter,
            _ => known.to_ascii_lowercase() == letter,
        })?;
        let number = number.parse().ok().filter(|_| number.len() == 3)?;
        Some(Self { list, number })
    }

    fn all() -> impl Iterator<Item = Self> {
        LISTS
            .iter()
            .enumerate()
            .flat_map(|(list, (_, ranges))| ranges.iter().cloned().flatten().map(move |number| Self { list, number }))
    }

    /// The items a test proves by the beginning of its name: `l_126_l_127_one_form` and `m_066_and_m_068_full_pools`
    /// prove two each, `m_050_to_m_054_wishes` proves five.
    fn proved_by(test: &str) -> BTreeSet<Self> {
        let mut items = BTreeSet::new();
        let mut rest = test;
        let mut first = None;
        while let Some(item) = rest.get(..5).and_then(|head| Self::parse(head, '_'))
            && let Some(after) = rest[5..].strip_prefix('_')
        {
            items.extend(first.take().map_or(vec![item], |first| Self::range(first, item)));
            if let Some(after) = after.strip_prefix("to_") {
                first = Some(item);
                rest = after;
            } else {
                rest = after.strip_prefix("and_").unwrap_or(after);
            }
        }
        items
    }

    fn range(first: Self, last: Self) -> Vec<Self> {
        Self::all().filter(|item| (first..=last).contains(item)).collect()
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:03}", LISTS[self.list].0, self.number)
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    item: Item,
    what: String,
    state: String,
    tests: BTreeSet<String>,
}

impl Row {
    /// Reads a line of the page, or `None` where it is not about an item.
    fn parse(line: &str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        let [item, what, state, tests] = cells[..] else { return None };
        let tests = tests.split(',').map(|test| test.trim().trim_matches('`').to_owned());
        Some(Self {
            item: Item::parse(item, '-')?,
            what: what.to_owned(),
            state: state.to_owned(),
            tests: tests.filter(|test| !test.is_empty()).collect(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tests: Vec<String> = self.tests.iter().map(|test| format!("`{test}`")).collect();
        write!(f, "| {} | {} | {} |", self.item, self.what, self.state)?;
        if !tests.is_empty() {
            write!(f, " {}", tests.join(", "))?;
        }
        write!(f, " |")
    }
}

/// Tests of the tree that begin with the number of an item.
type Proofs = BTreeSet<String>;

/// Functions in a source file whose name begins with the number of an item.
fn proofs_in(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("async ").unwrap_or(line);
        let name = line.strip_prefix("fn ")?.split(['(', '<']).next()?;
        (!Item::proved_by(name).is_empty()).then_some(name)
    })
}

fn proofs(folder: &Path, found: &mut Proofs) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                proofs(&path, found);
            }
        } else if name.ends_with(".rs") {
            found.extend(proofs_in(&fs::read_to_string(&path).expect("readable source")).map(str::to_owned));
        }
    }
}

fn page() -> PathBuf {
    workspace::root().join("docs/parity.md")
}

/// The page with its test column filled from the tree.
fn refreshed(page: &str, proofs: &Proofs) -> String {
    let mut by_item: BTreeMap<Item, BTreeSet<String>> = BTreeMap::new();
    for test in proofs {
        for item in Item::proved_by(test) {
            by_item.entry(item).or_default().insert(test.clone());
        }
    }
    let refresh = |line: &str| match Row::parse(line) {
        Some(row) => Row { tests: by_item.get(&row.item).cloned().unwrap_or_default(), ..row }.to_string(),
        None => line.to_owned(),
    };
    page.lines().map(|line| refresh(line) + "\n").collect()
}

/// Everything in which the page does not tell the truth.
fn complaints(page: &str, proofs: &Proofs) -> Vec<String> {
    let rows: Vec<Row> = page.lines().filter_map(Row::parse).collect();
    let mut found = Vec::new();

    let items: Vec<Item> = rows.iter().map(|row| row.item).collect();
    for pair in items.windows(2).filter(|pair| pair[0] >= pair[1]) {
        found.push(format!("{} stands after {}", pair[1], pair[0]));
    }
    let (expected, present): (BTreeSet<Item>, BTreeSet<Item>) = (Item::all().collect(), items.into_iter().collect());
    found.extend(expected.difference(&present).map(|item| format!("{item} is missing")));
    found.extend(present.difference(&expected).map(|item| format!("{item} is not an item")));

    for row in &rows {
        let (item, state) = (row.item, row.state.split(':').next().unwrap_or_default());
        let reason = row.state.split_once(':').map(|(_, reason)| reason.trim()).unwrap_or_default();
        match state {
            "done" if row.tests.is_empty() => found.push(format!("{item} is done and names no test")),
            "planned" if !row.tests.is_empty() => {
                found.push(format!("{item} is planned and has a test: write done, or partly: and what is missing"));
            }
            "done" | "planned" if !reason.is_empty() => found.push(format!("{item} is {state} and needs no reason")),
            "partly" | "differs" if reason.is_empty() => found.push(format!("{item} {state}: say how")),
            "done" | "planned" | "partly" | "differs" => {}
            _ => found.push(format!("{item}: {state:?} is not a state")),
        }
        if row.what.is_empty() {
            found.push(format!("{item} does not say what it is"));
        }
        for test in &row.tests {
            if !proofs.contains(test) {
                found.push(format!("{item} names {test}, which does not exist"));
            } else if !Item::proved_by(test).contains(&item) {
                found.push(format!("{item} names {test}, which does not begin with its number"));
            }
        }
    }
    for test in proofs {
        for item in Item::proved_by(test) {
            if !rows.iter().any(|row| row.item == item && row.tests.contains(test)) {
                found.push(format!("{item} does not name {test}"));
            }
        }
    }
    found
}

#[test]
fn the_page_names_every_proof_and_claims_nothing_without_one() {
    let mut tree = Proofs::new();
    proofs(workspace::root(), &mut tree);
    let mut text = fs::read_to_string(page()).expect("docs/parity.md");
    if std::env::var_os("UPDATE").is_some() {
        text = refreshed(&text, &tree);
        fs::write(page(), &text).expect("docs/parity.md can be written");
    }
    let found = complaints(&text, &tree);
    assert!(
        found.is_empty(),
        "docs/parity.md:\n  {}\nUPDATE=1 cargo test -p ferrogate-integration --test parity fills in the tests",
        found.join("\n  ")
    );
}

/// A page with every item planned, and these lines in place of those with the same number.
fn page_with(lines: &[&str]) -> String {
    let given: Vec<Row> = lines.iter().map(|line| Row::parse(line).expect("a line of the table")).collect();
    let row = |item| {
        let planned = Row { item, what: "it works".to_owned(), state: "planned".to_owned(), tests: BTreeSet::new() };
        given.iter().find(|row| row.item == item).cloned().unwrap_or(planned)
    };
    Item::all().map(|item| format!("{}\n", row(item))).collect()
}

fn tests(names: &[&str]) -> Proofs {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_true_page_draws_no_complaint() {
    let page = page_with(&[
        "| M-044 | it works | done | `m_044_it_works` |",
        "| L-126 | it works | done | `l_126_l_127_both_work` |",
        "| L-127 | it works | partly: not on Sundays | `l_126_l_127_both_work`, `l_127_more` |",
        "| N-001 | it works | differs: ours is better | |",
    ]);
    assert_eq!(complaints(&page, &tests(&["m_044_it_works", "l_126_l_127_both_work", "l_127_more"])), [""; 0]);
}

#[test]
fn every_lie_is_found() {
    let cases: [(&str, &[&str], &str); 10] = [
        ("| M-001 | it works | done | |", &[], "M-001 is done and names no test"),
        ("| M-001 | it works | done | `m_001_gone` |", &[], "M-001 names m_001_gone, which does not exist"),
        (
            "| M-001 | it works | done | `m_002_other` |",
            &["m_002_other"],
            "M-001 names m_002_other, which does not begin with its number",
        ),
        ("| M-001 | it works | planned | |", &["m_001_new"], "M-001 does not name m_001_new"),
        (
            "| M-001 | it works | planned | `m_001_new` |",
            &["m_001_new"],
            "M-001 is planned and has a test: write done, or partly: and what is missing",
        ),
        ("| M-001 | it works | partly | |", &[], "M-001 partly: say how"),
        ("| M-001 | it works | differs: | |", &[], "M-001 differs: say how"),
        ("| M-001 | it works | finished | |", &[], "M-001: \"finished\" is not a state"),
        ("| M-001 | it works | planned: soon | |", &[], "M-001 is planned and needs no reason"),
        ("| M-001 | | planned | |", &[], "M-001 does not say what it is"),
    ];
    for (line, tree, complaint) in cases {
        let found = complaints(&page_with(&[line]), &tests(tree));
        assert!(found.iter().any(|found| found == complaint), "{line}: {found:?}");
    }
}

#[test]
fn a_missing_a_doubled_and_an_invented_item_are_found() {
    let page = page_with(&[]);
    let without = page.replacen("| M-007 | it works | planned | |\n", "", 1);
    assert_eq!(complaints(&without, &Proofs::new()), ["M-007 is missing"]);
    let doubled = page.replacen("| M-007 |", "| M-007 | it works | planned | |\n| M-007 |", 1);
    assert_eq!(complaints(&doubled, &Proofs::new()), ["M-007 stands after M-007"]);
    let invented = page.replacen("| N-015 |", "| N-016 |", 1);
    assert_eq!(complaints(&invented, &Proofs::new()), ["N-015 is missing", "N-016 is not an item"]);
    assert_eq!(complaints(&page, &tests(&["n_016_nothing"])), ["N-016 does not name n_016_nothing"]);
}

#[test]
fn a_refresh_fills_in_tests_and_leaves_words_and_states_alone() {
    let before =
        "# Title\n\n| M-001 | it works | partly: a bit | `m_001_old` |\n| M-002 | so does this | planned | |\n";
    let after = refreshed(before, &tests(&["m_001_b", "m_001_a", "m_003_other"]));
    assert_eq!(
        after,
        "# Title\n\n| M-001 | it works | partly: a bit | `m_001_a`, `m_001_b` |\n| M-002 | so does this | planned | |\n"
    );
}

#[test]
fn proofs_are_told_from_other_functions() {
    // Spelled so that this very file does not claim them.
    let source = "
        #[test]
        FN m_001_plain() {}
        async FN l_126_l_127_both() {}
        FN n_005_property(bytes: Vec<u8>) {}
        // FN m_002_comment() {}
        FN m_1_short() {}
        FN m_0001_long() {}
        FN x_001_unknown() {}
        let text = \"FN m_003_text\";
    "
    .replace("FN", "fn");
    assert_eq!(proofs_in(&source).collect::<Vec<_>>(), ["m_001_plain", "l_126_l_127_both", "n_005_property"]);
}

#[test]
fn the_beginning_of_a_name_says_what_a_test_proves() {
    for (name, items) in [
        ("m_044_from_the_lowest", "M-044"),
        ("l_126_l_127_one_form", "L-126 L-127"),
        ("m_066_and_m_068_full_pools", "M-066 M-068"),
        ("n_014_to_n_020_across_a_gap", "N-014 N-015 N-020"),
        ("m_050_to_the_end", "M-050"),
        ("m_050_and_more", "M-050"),
        ("m_050", ""),
        ("plain", ""),
        ("\u{e4}_001_x", ""),
    ] {
        let proved: Vec<String> = Item::proved_by(name).iter().map(Item::to_string).collect();
        assert_eq!(proved.join(" "), items, "{name}");
    }
}
