//! The committed seeds of the fuzz targets, and a bounded number of inputs mutated from them, through the same
//! functions that `cargo fuzz` drives; so that a decoder which breaks its promise fails an ordinary test.

use std::{collections::BTreeSet, fs, path::Path};

#[path = "../../fuzz/targets/arp.rs"]
mod arp;
#[path = "../../fuzz/targets/bfd.rs"]
mod bfd;
#[path = "../../fuzz/targets/bgp.rs"]
mod bgp;
#[path = "../../fuzz/targets/gossip.rs"]
mod gossip;
#[path = "../../fuzz/targets/http1_chunks.rs"]
mod http1_chunks;
#[path = "../../fuzz/targets/http1_request.rs"]
mod http1_request;
#[path = "../../fuzz/targets/http1_response.rs"]
mod http1_response;
#[path = "../../fuzz/targets/ndp.rs"]
mod ndp;

type Check = fn(&[u8]);

/// Every fuzz target; [`no_fuzz_target_is_left_out`] compares it with the folder.
const TARGETS: &[(&str, Check)] = &[
    ("arp", arp::check),
    ("bfd", bfd::check),
    ("bgp", bgp::check),
    ("gossip", gossip::check),
    ("ndp", ndp::check),
    ("http1_chunks", http1_chunks::check),
    ("http1_request", http1_request::check),
    ("http1_response", http1_response::check),
];

/// Mutated inputs per target: enough to touch every branch, few enough for seconds. `FUZZ_INPUTS` asks for more.
const INPUTS: u64 = 50_000;

fn fuzz_folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz"))
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = fuzz_folder().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seed"));
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no *.seed", folder.display());
    paths.iter().map(|path| fs::read(path).expect("a readable seed")).collect()
}

/// A small generator, so that a failing input is the same on every machine (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % below.max(1) as u64) as usize
    }

    fn mutate(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.roll(input.len());
        match self.roll(8) {
            0 => input.truncate(at),
            1 => input.extend(vec![self.roll(256) as u8; self.roll(64)]),
            2 => input.insert(at.min(input.len()), self.roll(256) as u8),
            3 => {
                let other = &seeds[self.roll(seeds.len())];
                let cut = self.roll(other.len());
                input.truncate(at);
                input.extend(&other[cut..]);
            }
            4 if !input.is_empty() => drop(input.remove(at)),
            5 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'\r', b'\n', b' '][self.roll(8)],
            6 if !input.is_empty() => input[at] = self.roll(256) as u8,
            _ if !input.is_empty() => input[at] ^= 1 << self.roll(8),
            _ => {}
        }
    }
}

#[test]
fn no_fuzz_target_is_left_out() {
    let folder = fuzz_folder().join("targets");
    let files = fs::read_dir(folder).expect("the folder of fuzz targets");
    let files: BTreeSet<_> =
        files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();

    assert_eq!(files, TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect());
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for name in files {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "fuzz/Cargo.toml has no entry for {name}");
    }
}

#[test]
fn every_seed_and_many_mutations_of_it_keep_the_promises_of_its_decoder() {
    let inputs = std::env::var("FUZZ_INPUTS").map_or(INPUTS, |inputs| inputs.parse().expect("FUZZ_INPUTS is a number"));

    for &(target, check) in TARGETS {
        let seeds = seeds(target);
        for seed in &seeds {
            check(seed);
        }
        let mut dice = Dice(0);
        for _ in 0..inputs {
            let mut input = seeds[dice.roll(seeds.len())].clone();
            for _ in 0..=dice.roll(6) {
                dice.mutate(&mut input, &seeds);
            }
            if std::panic::catch_unwind(|| check(&input)).is_err() {
                let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                panic!("{target} broke a promise on {hex}");
            }
        }
    }
}
