//! What speakers report, each report by the file or object it stands in, and the things that they speak of.

use std::collections::{BTreeMap, BTreeSet};

/// Reports about things of type `K`. Several may be about the same.
#[derive(Debug)]
pub struct Reports<K, V> {
    said: BTreeMap<String, (K, V)>,
    /// The files that speak of each thing.
    files: BTreeMap<K, BTreeSet<String>>,
    stale: BTreeSet<K>,
}

impl<K, V> Default for Reports<K, V> {
    fn default() -> Self {
        Self { said: BTreeMap::new(), files: BTreeMap::new(), stale: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Reports<K, V> {
    /// Takes in what a file says, or that it says nothing any more.
    pub fn remember(&mut self, file: &str, said: Option<(K, V)>) {
        let before = match &said {
            Some(said) => self.said.insert(file.to_owned(), said.clone()),
            None => self.said.remove(file),
        };
        if before == said {
            return;
        }
        if let Some((about, _)) = before {
            let files = self.files.entry(about.clone()).or_default();
            files.remove(file);
            if files.is_empty() {
                self.files.remove(&about);
            }
            self.stale.insert(about);
        }
        if let Some((about, _)) = said {
            self.files.entry(about.clone()).or_default().insert(file.to_owned());
            self.stale.insert(about);
        }
    }

    /// Tells everything that is said of each thing of which something else was said before, in the order of files.
    pub fn settle(&mut self, mut take: impl FnMut(K, Vec<&V>)) {
        for about in std::mem::take(&mut self.stale) {
            let files = self.files.get(&about).into_iter().flatten();
            let said = files.filter_map(|file| self.said.get(file)).map(|(_, said)| said).collect();
            take(about, said);
        }
    }
}
