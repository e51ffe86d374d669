//! `ferrogate standalone` as a person runs it: the binary that ships, a folder of manifests, and loopback addresses of
//! its own for every test.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{fs, os::unix::process::ExitStatusExt, time::Duration};

use ferrogate_integration::lab::wait::until;
use nix::sys::signal::Signal;

use stand::{Backend, LIMIT, Stand, Steady, get};

#[path = "standalone/stand.rs"]
mod stand;

/// How long an edited file may take to have its effect.
const EDIT: Duration = Duration::from_secs(1);

#[test]
fn a_folder_of_manifests_becomes_addresses_that_answer_http_tcp_and_udp() {
    let stand = Stand::new();
    let (shop, cart, echo) = (Backend::http("shop"), Backend::http("cart"), Backend::echo("echo"));
    stand.write("apps.yaml", &[stand.entry(), stand.app("shop", &shop), stand.app("cart", &cart)]);
    stand.write("ingress.yaml", &[stand.ingress("shop", &[("/", "shop"), ("/cart", "cart")])]);
    stand.write("echo.yaml", &[stand.service("echo", "", &echo)]);

    let product = stand.start();

    let http = stand.at("ingress");
    until(LIMIT, || get(http, "/", "shop")).unwrap();
    until(LIMIT, || get(http, "/cart", "cart")).unwrap();
    until(LIMIT, || stand.tcp("echo", "echo")).unwrap();
    until(LIMIT, || stand.udp("echo", "echo")).unwrap();
    until(LIMIT, || product.admin("/readyz")).unwrap();
    let status = stand.status();
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
    assert_eq!(status["pools"][0]["assigned_ipv4"], 2, "{status:#}");
    let explained = stand.run(&["explain", "service", "default/echo"]).unwrap();
    assert!(explained.contains(&stand.address("echo").unwrap().to_string()), "{explained}");
}

#[test]
fn an_edited_manifest_takes_effect_within_a_second_and_no_request_fails() {
    let stand = Stand::new();
    let (one, two, moved, late) =
        (Backend::http("one"), Backend::http("two"), Backend::http("moved"), Backend::echo("late"));
    stand.write("entry.yaml", &[stand.entry()]);
    stand.write("one.yaml", &[stand.app("one", &one)]);
    stand.write("two.yaml", &[stand.app("two", &two)]);
    stand.write("ingress.yaml", &[stand.ingress("site", &[("/", "one")])]);
    let product = stand.start();
    let http = stand.at("ingress");
    until(LIMIT, || get(http, "/two", "one")).unwrap();
    let steady = Steady::http(http);

    stand.write("ingress.yaml", &[stand.ingress("site", &[("/", "one"), ("/two", "two")])]);
    until(EDIT, || get(http, "/two", "two")).unwrap();
    stand.write("one.yaml", &[stand.app("one", &moved)]);
    until(EDIT, || get(http, "/", "moved")).unwrap();
    stand.write("late.yaml", &[stand.service("late", "", &late)]);
    until(EDIT, || stand.tcp("late", "late")).unwrap();
    // As `cat >` and some editors do it: for a moment the file is empty.
    stand.write_in_place("ingress.yaml", &[stand.ingress("site", &[("/", "two")])]);
    until(EDIT, || get(http, "/", "two")).unwrap();

    steady.none_failed(&product);
    assert_eq!(get(http, "/", "two"), Ok(()));
}

#[test]
fn killed_and_started_again_every_service_has_the_address_it_had() {
    let stand = Stand::new();
    let backend = Backend::echo("b");
    let mut product = stand.start();
    // One after the other, so that the order of the addresses is not the order of the names.
    let mut before = Vec::new();
    for name in ["zebra", "mule", "cat"] {
        stand.write(&format!("{name}.yaml"), &[stand.service(name, "", &backend)]);
        before.push((name, until(LIMIT, || stand.address(name)).unwrap()));
    }
    product.kill();
    let wish = format!("loadBalancerIP: {}", before[0].1);
    stand.write("new.yaml", &[stand.service("ant", "", &backend), stand.service("ape", &wish, &backend)]);

    let _product = stand.start();

    let ant = until(LIMIT, || stand.address("ant")).unwrap();
    assert!(before.iter().all(|(_, address)| *address != ant), "{ant} is taken: {before:?}");
    let ape = until(LIMIT, || stand.says("ape", &["zebra", "default"])).unwrap();
    for (name, address) in &before {
        assert_eq!(stand.address(name), Ok(*address), "{name}; ape: {ape}");
        until(LIMIT, || stand.tcp(name, "b")).unwrap();
    }
}

#[test]
fn asked_to_stop_it_finishes_what_it_has_begun() {
    let stand = Stand::new();
    let backend = Backend::http("slow");
    stand.write("apps.yaml", &[stand.entry(), stand.app("slow", &backend)]);
    stand.write("ingress.yaml", &[stand.ingress("slow", &[("/", "slow")])]);
    let mut product = stand.start();
    let http = stand.at("ingress");
    until(LIMIT, || get(http, "/", "slow")).unwrap();
    let closed = backend.close_gate();
    let request = std::thread::spawn(move || get(http, "/gate", "slow"));
    closed.wait_for_a_request();

    product.signal(Signal::SIGTERM);
    product.logged(&["asked to stop"]).unwrap();
    closed.open();

    assert_eq!(request.join().unwrap(), Ok(()), "{}", product.log());
    let status = product.wait();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", product.log());
    let _product = stand.start();
    until(LIMIT, || get(http, "/", "slow")).unwrap();
}

/// A manifest that is wrong, and the words that must be said of it: in the log and by `status` those of `problem`, of
/// a Service those of `service`.
struct Bad {
    what: &'static str,
    text: String,
    problem: &'static [&'static str],
    service: Option<(&'static str, Vec<String>)>,
}

#[test]
fn a_bad_manifest_is_told_with_file_object_field_and_remedy_and_disturbs_nobody() {
    let stand = Stand::new();
    let backend = Backend::echo("b");
    stand.write("steady.yaml", &[stand.service("steady", "", &backend)]);
    let good = stand.service("good", "", &backend);
    stand.write("good.yaml", std::slice::from_ref(&good));
    let product = stand.start();
    until(LIMIT, || stand.tcp("good", "b")).unwrap();
    until(LIMIT, || stand.tcp("steady", "b")).unwrap();
    let taken = stand.address("steady").unwrap();
    let steady = Steady::tcp(stand.at("steady"), "b");

    // A file that was good keeps its objects in force.
    stand.write("good.yaml", &[format!("{good}  oops: [\n")]);
    let words = ["good.yaml", "line ", "correct the file"];
    product.logged(&words).unwrap();
    until(LIMIT, || stand.problem(&words)).unwrap();
    stand.tcp("good", "b").unwrap();
    stand.write("good.yaml", &[good]);
    product.logged(&["manifest problem is gone", "good.yaml"]).unwrap();

    let wish = |ip: &str| format!("loadBalancerIP: {ip}");
    let table = [
        Bad {
            what: "unknown kind",
            text: "apiVersion: ferrogate.io/v1beta1\nkind: IPAdressPool\nmetadata: { name: typo }\n".to_owned(),
            problem: &["bad.yaml", "typo", "IPAdressPool", "check apiVersion and kind"],
            service: None,
        },
        Bad {
            what: "impossible pool",
            text: stand.pool("wrong", "10.0.0.300/24"),
            problem: &["bad.yaml", "wrong", "spec.addresses[0]", "10.0.0.300/24", "a prefix such as"],
            service: None,
        },
        Bad {
            what: "overlapping pools",
            text: stand.pool("twice", &stand.range()),
            problem: &["bad.yaml", "twice", "spec.addresses[0]", "pool main", "give each address to one pool only"],
            service: None,
        },
        Bad {
            what: "an address of no pool",
            text: stand.service("outside", &wish("192.0.2.7"), &backend),
            problem: &[],
            service: Some(("outside", ["192.0.2.7", "add it to a pool"].map(str::to_owned).to_vec())),
        },
        Bad {
            what: "an address somebody has",
            text: stand.service("second", &wish(&taken.to_string()), &backend),
            problem: &[],
            service: Some((
                "second",
                vec![taken.to_string(), "default/steady".to_owned(), "ferrogate.io/allow-shared-ip".to_owned()],
            )),
        },
    ];
    for Bad { what, text, problem, service } in table {
        stand.write("bad.yaml", &[text]);

        if !problem.is_empty() {
            product.logged(problem).unwrap_or_else(|error| panic!("{what}: {error}"));
            until(LIMIT, || stand.problem(problem)).unwrap_or_else(|error| panic!("{what}: {error}"));
            let event: Vec<_> = problem[1..].to_vec();
            until(LIMIT, || stand.event(&event)).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        if let Some((name, words)) = service {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            until(LIMIT, || stand.says(name, &words)).unwrap_or_else(|error| panic!("{what}: {error}"));
            let event: Vec<_> = [name, "AllocationFailed"].into_iter().chain(words.iter().copied()).collect();
            until(LIMIT, || stand.event(&event)).unwrap_or_else(|error| panic!("{what}: {error}"));
            product.logged(&words).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        stand.tcp("good", "b").unwrap_or_else(|error| panic!("{what}: {error}"));
        stand.remove("bad.yaml");
        until(LIMIT, || stand.no_problem()).unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    steady.none_failed(&product);
    assert_eq!(stand.address("steady"), Ok(taken));
}

#[test]
fn an_empty_folder_is_no_failure_and_is_filled_later() {
    let stand = Stand::empty();
    let backend = Backend::echo("b");

    let product = stand.start();

    product.logged(&["holds no objects yet", &stand.manifests().display().to_string()]).unwrap();
    until(LIMIT, || product.admin("/readyz")).unwrap();
    stand.write("network.yaml", &stand.network());
    stand.write("steady.yaml", &[stand.service("steady", "", &backend)]);
    until(EDIT, || stand.tcp("steady", "b")).unwrap();
}

#[test]
fn a_folder_that_is_not_there_is_named_with_the_remedy() {
    let stand = Stand::empty();
    fs::remove_dir(stand.manifests()).unwrap();

    let error = stand.run(&["standalone", "--admin", "127.0.0.1:0"]).unwrap_err();

    for word in [&*stand.manifests().display().to_string(), "create it or correct --manifests"] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_folder_that_vanishes_takes_nothing_with_it_and_is_followed_when_it_is_back() {
    let stand = Stand::new();
    let (backend, late) = (Backend::echo("b"), Backend::echo("late"));
    stand.write("steady.yaml", &[stand.service("steady", "", &backend)]);
    let product = stand.start();
    until(LIMIT, || stand.tcp("steady", "b")).unwrap();
    let address = stand.address("steady").unwrap();
    let steady = Steady::tcp(stand.at("steady"), "b");
    let folder = stand.manifests();
    let words = [&*folder.display().to_string(), "make the folder readable again"];

    // Moved away as a whole, and put back.
    let aside = folder.with_extension("aside");
    fs::rename(&folder, &aside).unwrap();
    product.logged(&words).unwrap();
    stand.run(&["status", "-o", "json"]).unwrap_err();
    fs::rename(&aside, &folder).unwrap();
    product.logged(&["manifest problem is gone", words[0]]).unwrap();
    stand.write("late.yaml", &[stand.service("late", "", &late)]);
    until(EDIT, || stand.tcp("late", "late")).unwrap();

    // Removed with all that is in it, and made anew.
    let seen = product.log().len();
    fs::remove_dir_all(&folder).unwrap();
    until(LIMIT, || product.logged_since(seen, &words)).unwrap();
    stand.tcp("late", "late").unwrap();
    fs::create_dir(&folder).unwrap();
    stand.write("network.yaml", &stand.network());
    stand.write("steady.yaml", &[stand.service("steady", "", &backend)]);
    stand.write("late.yaml", &[stand.service("late", "", &backend)]);
    until(LIMIT, || stand.tcp("late", "b")).unwrap();

    steady.none_failed(&product);
    assert_eq!(stand.address("steady"), Ok(address));
}

#[test]
fn a_full_disk_is_told_and_what_could_not_be_written_is_written_when_there_is_room() {
    let stand = Stand::new();
    let (backend, late) = (Backend::echo("b"), Backend::echo("late"));
    stand.write("steady.yaml", &[stand.service("steady", "", &backend)]);
    let product = stand.start_with_small_disk();
    until(LIMIT, || stand.tcp_at(product.disk_address("steady")?, "b")).unwrap();
    let address = product.disk_address("steady").unwrap();
    let steady = Steady::tcp(address, "b");

    product.fill_disk();
    stand.write("late.yaml", &[stand.service("late", "", &late)]);
    product.logged(&["state cannot be written", "services/default/late.yaml", "free some space"]).unwrap();
    product.logged(&["manifest problem", "cannot be written", "free some space there"]).unwrap();
    assert!(product.disk_address("late").is_err());
    product.free_disk();

    until(LIMIT, || stand.tcp_at(product.disk_address("late")?, "late")).unwrap();
    product.logged(&["state is written again"]).unwrap();
    steady.none_failed(&product);
    assert_eq!(product.disk_address("steady"), Ok(address));
}

#[test]
fn a_state_file_that_cannot_be_read_is_named_and_gives_no_address_away() {
    let stand = Stand::new();
    let backend = Backend::echo("b");
    for name in ["hurt", "steady"] {
        stand.write(&format!("{name}.yaml"), &[stand.service(name, "", &backend)]);
    }
    let mut product = stand.start();
    let hurt = until(LIMIT, || stand.address("hurt")).unwrap();
    let kept = until(LIMIT, || stand.address("steady")).unwrap();
    product.kill();
    let file = stand.state().join("services/default/hurt.yaml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, &good[..good.len() / 2]).unwrap();

    let product = stand.start();

    let words = ["services/default/hurt.yaml", "default/hurt", "restore the file from a copy, or remove it"];
    product.logged(&words).unwrap();
    until(LIMIT, || stand.problem(&words)).unwrap();
    until(LIMIT, || stand.tcp("steady", "b")).unwrap();
    assert_eq!(stand.address("steady"), Ok(kept));
    assert_eq!(fs::read_to_string(&file).unwrap(), good[..good.len() / 2], "it is left as it was found");
    fs::write(&file, &good).unwrap();
    until(LIMIT, || stand.tcp("hurt", "b")).unwrap();
    assert_eq!(stand.address("hurt"), Ok(hurt));
}
