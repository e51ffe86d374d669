use proptest::prelude::*;

use super::*;
use crate::{
    model::route::IngressRule,
    proxy::{
        NoRoute, RouteTable,
        fixtures::{BuildIngress, backend, host, ingress, key, number, port, routes, service, snapshot, to},
        precedence::PathRank,
    },
};

/// Asks one table many things: path of the request, then the Service that must take it.
fn expect(table: &RouteTable, wanted: &[(&str, Option<&str>)]) {
    for (path, taker) in wanted {
        assert_eq!(table.taker("www.example.com", path), *taker, "{path}");
    }
}

#[test]
fn l_011_exact_foo_matches_only_foo() {
    let table = routes([ingress("one").exact("", "/foo", "web")]);

    expect(&table, &[("/foo", Some("web")), ("/foo/", None), ("/bar", None), ("/foo/bar", None), ("/", None)]);
}

#[test]
fn exact_foo_with_a_slash_does_not_match_foo() {
    let table = routes([ingress("one").exact("", "/foo/", "web")]);

    expect(&table, &[("/foo/", Some("web")), ("/foo", None)]);
}

#[test]
fn l_012_exact_and_prefix_are_case_sensitive() {
    let table = routes([ingress("one").exact("", "/foo", "web").prefix("", "/aaa", "api")]);

    expect(&table, &[("/FOO", None), ("/AAA", None), ("/Aaa/bbb", None), ("/foo", Some("web")), ("/aaa", Some("api"))]);
}

#[test]
fn l_013_a_trailing_slash_makes_no_difference_to_a_prefix() {
    for path in ["/foo", "/foo/"] {
        let table = routes([ingress("one").prefix("", path, "web")]);

        expect(&table, &[("/foo", Some("web")), ("/foo/", Some("web")), ("/foo/bar", Some("web")), ("/", None)]);
    }
}

#[test]
fn l_014_prefix_aaa_does_not_match_aaaccc() {
    let table = routes([ingress("one").prefix("", "/aaa", "web").prefix("", "/x/bbb", "api")]);

    expect(&table, &[("/aaaccc", None), ("/aaa/ccc", Some("web")), ("/x/bbbxyz", None), ("/x/bb", None)]);
}

#[test]
fn l_015_the_longest_prefix_wins() {
    let table =
        routes([ingress("one").prefix("", "/", "root").prefix("", "/aaa", "short").prefix("", "/aaa/bbb", "long")]);

    expect(
        &table,
        &[
            ("/aaa/bbb", Some("long")),
            ("/aaa/bbb/ccc", Some("long")),
            ("/aaa/ccc", Some("short")),
            ("/aaaccc", Some("root")),
            ("/", Some("root")),
        ],
    );
}

#[test]
fn a_long_prefix_without_a_rule_on_the_way_falls_back_to_the_shorter_one() {
    let table = routes([ingress("one").prefix("", "/a", "short").prefix("", "/a/b/c/d", "long")]);

    expect(&table, &[("/a/b/c", Some("short")), ("/a/b/c/d/e", Some("long")), ("/a/x/c/d", Some("short"))]);
}

#[test]
fn l_016_exact_beats_prefix_on_the_same_path() {
    let table = routes([
        ingress("one").created(1).prefix("", "/foo", "prefix"),
        ingress("two").created(2).exact("", "/foo", "exact"),
    ]);

    expect(&table, &[("/foo", Some("exact")), ("/foo/", Some("prefix")), ("/foo/bar", Some("prefix"))]);
    assert_eq!(table.unserved(), []);
}

#[test]
fn l_017_a_wildcard_stands_for_one_label() {
    let table = routes([ingress("one").prefix("*.foo.com", "/", "web")]);

    assert_eq!(table.taker("bar.foo.com", "/"), Some("web"));
    for other in ["foo.com", "a.b.foo.com", ".foo.com", "barfoo.com", ""] {
        assert_eq!(table.taker(other, "/"), None, "{other}");
    }
}

#[test]
fn l_018_an_exact_host_beats_a_wildcard_and_both_beat_any() {
    let table = routes([ingress("one").prefix("", "/", "any").prefix("*.foo.com", "/", "wild").prefix(
        "bar.foo.com",
        "/",
        "exact",
    )]);

    assert_eq!(table.taker("bar.foo.com", "/"), Some("exact"));
    assert_eq!(table.taker("qux.foo.com", "/"), Some("wild"));
    assert_eq!(table.taker("example.net", "/"), Some("any"));
    assert_eq!(table.taker("", "/"), Some("any"));
}

#[test]
fn a_host_that_is_named_keeps_its_requests_from_less_precise_ones() {
    let table = routes([ingress("one").prefix("*.foo.com", "/", "wild").prefix("bar.foo.com", "/api", "exact")]);

    assert_eq!(table.taker("bar.foo.com", "/api/v1"), Some("exact"));
    let request = RequestView { host: Some("bar.foo.com"), path: "/other" };
    assert_eq!(table.route(&request), Err(NoRoute::NoPath));
}

#[test]
fn l_005_the_port_of_a_host_makes_no_difference() {
    let table = routes([ingress("one").prefix("bar.foo.com", "/", "web")]);

    for same in ["bar.foo.com:31234", "bar.foo.com:80", "BAR.Foo.com", "bar.foo.com.", "Bar.foo.com.:8080"] {
        assert_eq!(table.taker(same, "/"), Some("web"), "{same}");
    }
}

#[test]
fn an_address_as_host_loses_brackets_and_port() {
    assert_eq!(host_name("[2001:db8::1]:8080"), "2001:db8::1");
    assert_eq!(host_name("192.0.2.1:8080"), "192.0.2.1");
}

#[test]
fn l_019_an_ingress_without_rules_takes_everything_that_no_rule_takes() {
    let table = routes([ingress("one").prefix("bar.foo.com", "/api", "api"), ingress("two").default_to("rest")]);

    assert_eq!(table.taker("bar.foo.com", "/api"), Some("api"));
    assert_eq!(table.taker("bar.foo.com", "/other"), Some("rest"));
    assert_eq!(table.taker("example.net", "/any/path"), Some("rest"));
    assert_eq!(table.taker("", "/"), Some("rest"));
}

#[test]
fn what_no_path_takes_goes_to_the_default_backend_of_its_own_ingress() {
    let table = routes([
        ingress("one").created(1).default_to("everyone"),
        ingress("two").created(2).prefix("bar.foo.com", "/api", "api").default_to("own"),
        ingress("three").created(3).bare_host("bare.foo.com").default_to("bare"),
    ]);

    assert_eq!(table.taker("bar.foo.com", "/other"), Some("own"));
    assert_eq!(table.taker("bare.foo.com", "/any"), Some("bare"));
    assert_eq!(table.taker("example.net", "/"), Some("everyone"));
    assert_eq!(table.unserved(), []);
}

#[test]
fn a_default_backend_beside_rules_serves_other_hosts_only_when_nobody_else_does() {
    let with_rules = || ingress("one").created(1).prefix("bar.foo.com", "/", "api").default_to("beside");
    let without_rules = ingress("two").created(2).default_to("alone");

    assert_eq!(routes([with_rules()]).taker("example.net", "/"), Some("beside"));
    assert_eq!(routes([with_rules(), without_rules]).taker("example.net", "/"), Some("alone"));
}

#[test]
fn of_several_default_backends_the_oldest_wins_and_the_others_are_reported() {
    let table = routes([
        ingress("aaa").created(20).default_to("young"),
        ingress("bbb").created(10).default_to("old"),
        ingress("ccc").created(10).default_to("old-but-later-by-name"),
    ]);

    assert_eq!(table.taker("example.net", "/"), Some("old"));
    let reported: Vec<&str> = table.unserved().iter().map(|unserved| unserved.object.name.as_str()).collect();
    assert_eq!(reported, ["ccc", "aaa"]);
    assert_eq!(table.unserved()[0].why, Why::DefaultBackendTaken { host: None, by: key("bbb") });
}

#[test]
fn l_028_ingresses_of_one_host_are_merged() {
    let table = routes([
        ingress("one").prefix("bar.foo.com", "/one", "one"),
        ingress("two").prefix("bar.foo.com", "/two", "two"),
    ]);

    assert_eq!(table.taker("bar.foo.com", "/one"), Some("one"));
    assert_eq!(table.taker("bar.foo.com", "/two"), Some("two"));
    assert_eq!(table.unserved(), []);
}

#[test]
fn l_028_on_the_same_host_and_path_the_older_ingress_wins_and_the_younger_is_reported() {
    let table = routes([
        ingress("aaa").created(20).prefix("bar.foo.com", "/one/", "young"),
        ingress("bbb").created(10).prefix("bar.foo.com", "/one", "old"),
    ]);

    assert_eq!(table.taker("bar.foo.com", "/one"), Some("old"));
    let [unserved] = table.unserved() else { panic!("{:?}", table.unserved()) };
    assert_eq!(unserved.object, ObjectRef::ingress(&key("aaa")));
    assert_eq!(unserved.why.reason(), "PathTaken");
    assert_eq!(
        unserved.why.to_string(),
        "Prefix path \"/one/\" of host bar.foo.com is already taken by Ingress default/bbb; remove one of the two"
    );
}

#[test]
fn between_ingresses_of_one_age_the_first_by_namespace_and_name_wins() {
    let table = routes([ingress("bbb").prefix("", "/", "second"), ingress("aaa").prefix("", "/", "first")]);

    assert_eq!(table.taker("example.net", "/"), Some("first"));
}

#[test]
fn doubled_slashes_do_not_lead_around_a_prefix() {
    let table = routes([ingress("one").prefix("", "/", "public").prefix("", "/admin/area", "admin")]);

    expect(&table, &[("//admin//area", Some("admin")), ("/admin/area//", Some("admin"))]);
}

#[test]
fn a_path_of_a_hundred_thousand_elements_is_as_good_as_any() {
    let deep = "/a".repeat(100_000);
    let table = routes([ingress("one").prefix("", &deep, "deep").prefix("", "/", "root")]);

    expect(&table, &[(deep.as_str(), Some("deep")), ("/a/a", Some("root"))]);
    drop(table);
}

#[test]
fn l_021_a_service_port_may_be_a_name_or_a_number() {
    let mut web = backend("web");
    web.ports.push(port("admin", crate::model::service::Protocol::Tcp, 9000));
    let by_name = route::Backend { service: key("web"), port: BackendPort::Name("http".to_owned()) };
    let by_number = route::Backend { service: key("web"), port: BackendPort::Number(number(80)) };
    let ingress =
        ingress("one").path("", "/name", PathKind::Exact, by_name).path("", "/number", PathKind::Exact, by_number);

    let table = RouteTable::compile(&snapshot([web], [ingress]), None);

    for path in ["/name", "/number"] {
        let route = table.route(&RequestView { host: None, path }).unwrap();
        assert_eq!(route.backend.port, number(80));
        assert_eq!(route.backend.targets()[0].address, "198.51.100.1:8080".parse().unwrap());
    }
}

#[test]
fn a_rule_that_leads_nowhere_says_why_and_takes_its_requests_all_the_same() {
    let no_port = route::Backend { service: key("web"), port: BackendPort::Name("nope".to_owned()) };
    let ingress = ingress("one")
        .default_to("web")
        .prefix("", "/missing", "missing")
        .path("", "/no-port", PathKind::Prefix, no_port)
        .prefix("", "/empty", "empty");
    let table = RouteTable::compile(&snapshot([backend("web"), service("empty")], [ingress]), None);
    let route = |path| table.route(&RequestView { host: Some("example.net"), path });

    assert!(matches!(route("/missing/x"), Err(NoRoute::ServiceMissing(rule)) if rule.service == key("missing")));
    assert!(matches!(route("/no-port"), Err(NoRoute::PortMissing(rule)) if rule.service == key("web")));
    assert!(matches!(route("/empty"), Err(NoRoute::NoEndpoint(rule)) if rule.service == key("empty")));
    assert_eq!(route("/").unwrap().backend.service, key("web"));
    let reasons: Vec<&str> = table.unserved().iter().map(|unserved| unserved.why.reason()).collect();
    assert_eq!(reasons, ["ServiceNotFound", "ServicePortNotFound"]);
}

#[test]
fn why_there_is_no_route_is_told_apart() {
    let table = routes([ingress("one").prefix("bar.foo.com", "/api", "api").bare_host("bare.foo.com")]);
    let why = |host| table.route(&RequestView { host: Some(host), path: "/" });

    assert_eq!(why("example.net"), Err(NoRoute::NoHost));
    assert_eq!(why("bar.foo.com"), Err(NoRoute::NoPath));
    assert_eq!(why("bare.foo.com"), Err(NoRoute::NoDefault));
}

#[test]
fn every_rule_in_force_is_listed() {
    let table =
        routes([ingress("one").exact("bar.foo.com", "/e", "web").prefix("*.foo.com", "/p/", "web").default_to("rest")]);

    let listed: Vec<_> =
        table.rules().map(|listed| (listed.host, listed.path, listed.rule.service.to_string())).collect();

    assert_eq!(
        listed,
        [
            (Some(host("bar.foo.com")), Some(("/e", PathKind::Exact)), "default/web".to_owned()),
            (Some(host("bar.foo.com")), None, "default/rest".to_owned()),
            (Some(host("*.foo.com")), Some(("/p/", PathKind::Prefix)), "default/web".to_owned()),
            (Some(host("*.foo.com")), None, "default/rest".to_owned()),
            (None, None, "default/rest".to_owned()),
        ]
    );
}

/// Whether a rule takes a request, word by word as the API describes it.
fn takes(kind: PathKind, rule: &str, request: &str) -> bool {
    if kind == PathKind::Exact {
        return rule == request;
    }
    let rule: Vec<&str> = rule.split('/').filter(|element| !element.is_empty()).collect();
    let request: Vec<&str> = request.split('/').filter(|element| !element.is_empty()).collect();
    request.starts_with(&rule)
}

fn names(rule: &Host, request: &str) -> bool {
    match rule {
        Host::Exact(name) => name == request,
        Host::Wildcard(suffix) => {
            request.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == suffix)
        }
        Host::Any => true,
    }
}

/// The Service that takes a request: all rules, sorted by precedence, the first that matches.
fn naive(ingresses: &[Ingress], name: &str, path: &str) -> Option<String> {
    let rules = || ingresses.iter().flat_map(|ingress| ingress.rules.iter().map(move |rule| (ingress, rule)));
    let closest = rules()
        .map(|(_, rule)| &rule.host)
        .filter(|host| names(host, name))
        .max_by_key(|host| (matches!(host, Host::Exact(_)), matches!(host, Host::Wildcard(_))));
    let mut candidates = Vec::new();
    for (ingress, rule) in rules().filter(|(_, rule)| Some(&rule.host) == closest) {
        for (index, rule_path) in rule.paths.iter().enumerate() {
            if takes(rule_path.kind, &rule_path.path, path) {
                let number = ingress.rules.iter().position(|other| std::ptr::eq(other, rule)).unwrap();
                let precedence =
                    Precedence::of_path(ingress, &rule.host, rule_path.kind, &rule_path.path, (number, index));
                candidates.push((precedence, &rule_path.backend));
            }
        }
        if let Some(default) = &ingress.default_backend {
            candidates.push((Precedence::of_default(ingress, &rule.host, (0, 0)), default));
        }
    }
    if candidates.is_empty() {
        let defaults = ingresses.iter().filter_map(|ingress| Some((ingress, ingress.default_backend.as_ref()?)));
        candidates.extend(defaults.map(|(ingress, default)| (Precedence::of_leftover(ingress), default)));
    }
    candidates.sort_by(|one, other| one.0.cmp(&other.0));
    candidates.last().map(|(_, backend)| backend.service.name.to_string())
}

fn any_host() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "*.b.c", "a.b.c", "x.b.c", "*.c", "b.c"])
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 0..4)
        .prop_flat_map(|elements| {
            prop::sample::select(vec![false, true]).prop_map(move |slash| (elements.clone(), slash))
        })
        .prop_map(|(elements, slash)| {
            format!("/{}{}", elements.join("/"), if slash && !elements.is_empty() { "/" } else { "" })
        })
}

fn any_ingress() -> impl Strategy<Value = Ingress> {
    let path = (any_path(), any::<bool>(), 0..6_usize).prop_map(|(path, exact, service)| route::IngressPath {
        path,
        kind: if exact { PathKind::Exact } else { PathKind::Prefix },
        backend: to(&format!("s{service}")),
    });
    let rule = (any_host(), prop::collection::vec(path, 0..4))
        .prop_map(|(name, paths)| IngressRule { host: host(name), paths });
    let default = prop::option::of((0..6_usize).prop_map(|service| to(&format!("s{service}"))));
    (0..3_i64, prop::collection::vec(rule, 0..4), default).prop_map(|(created, rules, default_backend)| Ingress {
        created,
        rules,
        default_backend,
        ..ingress("")
    })
}

proptest! {
    #[test]
    fn matching_equals_a_sort_by_the_specification(
        mut ingresses in prop::collection::vec(any_ingress(), 0..5),
        requests in prop::collection::vec((any_host(), any_path()), 1..24),
    ) {
        for (index, ingress) in ingresses.iter_mut().enumerate() {
            ingress.key = key(&format!("i{index}"));
        }
        let table = routes(ingresses.clone());
        for (name, path) in requests {
            let name = name.replace('*', "q");
            let found = table.taker(&name, &path).map(str::to_owned);
            prop_assert_eq!(found, naive(&ingresses, &name, &path), "{} {}", name, path);
        }
    }

    #[test]
    fn every_rule_is_in_force_or_reported(
        mut ingresses in prop::collection::vec(any_ingress(), 0..5),
    ) {
        for (index, ingress) in ingresses.iter_mut().enumerate() {
            ingress.key = key(&format!("i{index}"));
        }
        let table = routes(ingresses.clone());

        let written: usize = ingresses.iter().flat_map(|ingress| &ingress.rules).map(|rule| rule.paths.len()).sum();
        let in_force = table.rules().filter(|listed| listed.path.is_some()).count();
        let reported = table.unserved().iter().filter(|unserved| matches!(unserved.why, Why::PathTaken { .. })).count();
        prop_assert_eq!(written, in_force + reported);
    }

    #[test]
    fn no_host_and_no_path_is_too_strange(name in any::<Option<String>>(), path in any::<String>()) {
        let table = routes([ingress("one").prefix("*.foo.com", "/a", "web").exact("bar.foo.com", "/", "web")]);
        let _ = table.route(&RequestView { host: name.as_deref(), path: &path });
    }
}

#[test]
fn the_order_of_precedence_is_host_then_path_then_age() {
    let old = ingress("old").created(1);
    let young = ingress("young").created(2);
    let path = |ingress, name: &str, kind, path| Precedence::of_path(ingress, &host(name), kind, path, (0, 0));

    assert!(path(&young, "a.b", PathKind::Prefix, "/") > path(&old, "*.b", PathKind::Exact, "/a"));
    assert!(path(&young, "", PathKind::Exact, "/a") > path(&old, "", PathKind::Prefix, "/a"));
    assert!(path(&young, "", PathKind::Prefix, "/a/b") > path(&old, "", PathKind::Prefix, "/a"));
    assert!(path(&old, "", PathKind::Prefix, "/a") > path(&young, "", PathKind::Prefix, "/a"));
    assert!(path(&young, "", PathKind::Prefix, "/") > Precedence::of_default(&old, &host(""), (0, 0)));
    assert!(PathRank::Prefix { elements: 0 } > PathRank::Default && PathRank::Default > PathRank::Elsewhere);
}
