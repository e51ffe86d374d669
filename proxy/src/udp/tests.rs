use ferrogate_core::model::{NodeName, service::SessionAffinity};
use tokio::net::UdpSocket as Peer;

use super::*;
use crate::{
    config::Config,
    fixtures::{World, loopback, run, settle},
};

/// A proxy with one listener, and the socket of a client that knows only the listener.
struct Stand {
    world: World,
    thread: Rc<Thread>,
    close: CancellationToken,
}

impl Stand {
    fn new(config: Config, change: impl FnOnce(World) -> World) -> Self {
        let socket = UdpSocket::bind(loopback()).unwrap();
        let world = change(World::new(socket.local_addr().unwrap(), Transport::Udp));
        let thread = world.thread(config);
        let close = CancellationToken::new();
        tokio::task::spawn_local(open(&thread, world.key, socket, close.clone()).unwrap());
        Self { world, thread, close }
    }

    async fn client(&self) -> Peer {
        let client = peer().await;
        client.connect(self.world.key.socket).await.unwrap();
        client
    }

    async fn adopt(&mut self, change: impl FnOnce(&mut World)) {
        change(&mut self.world);
        self.thread.adopt(self.world.table());
        settle().await;
    }

    async fn replace_endpoints_by(&mut self, pod: &Peer) {
        self.adopt(|world| {
            let moved = World::new(world.key.socket, Transport::Udp).endpoint(at(pod), "a");
            world.service.endpoints = moved.service.endpoints;
        })
        .await;
    }
}

/// A listener that nobody runs, so that the test decides what happens when.
fn listener(world: &World, config: Config) -> Rc<Listener> {
    let socket = datagrams::register(UdpSocket::bind(loopback()).unwrap()).unwrap();
    Rc::new(Listener { thread: world.thread(config), key: world.key, socket, flows: RefCell::default() })
}

async fn peer() -> Peer {
    Peer::bind(loopback()).await.unwrap()
}

fn at(peer: &Peer) -> SocketAddr {
    peer.local_addr().unwrap()
}

/// What a pod hears next, and from which socket of the proxy.
async fn hear(pod: &Peer) -> (Vec<u8>, SocketAddr) {
    let mut space = vec![0; 65_536];
    let (length, from) = pod.recv_from(&mut space).await.unwrap();
    space.truncate(length);
    (space, from)
}

/// A question of the client and the answer of whichever pod gets it: the number of the pod, and the proxy's socket.
async fn exchange(client: &Peer, pods: &[&Peer]) -> (usize, SocketAddr) {
    client.send(b"question").await.unwrap();
    let (number, from) = match pods {
        [pod] => (0, hear(pod).await.1),
        [one, other] => tokio::select! { heard = hear(one) => (0, heard.1), heard = hear(other) => (1, heard.1) },
        _ => panic!("one or two pods"),
    };
    pods[number].send_to(b"answer", from).await.unwrap();
    let mut answer = [0; 6];
    assert_eq!(client.recv(&mut answer).await.unwrap(), 6);
    (number, from)
}

#[test]
fn l_106_answers_come_from_the_address_that_was_asked_and_clients_do_not_mix() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let (one, other) = (stand.client().await, stand.client().await);

        one.send(b"one").await.unwrap();
        let (first, from_one) = hear(&pod).await;
        other.send(b"other").await.unwrap();
        let (second, from_other) = hear(&pod).await;
        pod.send_to(b"to other", from_other).await.unwrap();
        pod.send_to(b"to one", from_one).await.unwrap();

        assert_eq!((first.as_slice(), second.as_slice()), (&b"one"[..], &b"other"[..]));
        // Connected sockets: only what comes from the listener's address arrives.
        assert_eq!(hear(&one).await.0, b"to one");
        assert_eq!(hear(&other).await.0, b"to other");
    });
}

#[test]
fn the_largest_and_the_empty_datagram_pass_both_ways() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let client = stand.client().await;
        for length in [65_507, 0, 1] {
            let datagram = vec![b'x'; length];

            client.send(&datagram).await.unwrap();
            let (heard, from) = hear(&pod).await;
            pod.send_to(&heard, from).await.unwrap();

            assert_eq!(heard.len(), length);
            assert_eq!(hear(&client).await.0.len(), length);
        }
        assert_eq!(stand.thread.counters.datagrams_lost.value(), 0);
    });
}

#[test]
fn a_client_keeps_its_endpoint_and_clients_are_spread() {
    run(async {
        let (one, other) = (peer().await, peer().await);
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&one), "a").endpoint(at(&other), "a"));
        let (first, second) = (stand.client().await, stand.client().await);

        let (of_first, socket) = exchange(&first, &[&one, &other]).await;
        let (of_second, _) = exchange(&second, &[&one, &other]).await;
        let again = exchange(&first, &[&one, &other]).await;

        assert_ne!(of_first, of_second);
        assert_eq!(again, (of_first, socket));
        assert_eq!(stand.thread.counters.flows.value(), 2);
    });
}

#[test]
fn a_flow_whose_endpoint_refuses_gets_another_one_at_once() {
    run(async {
        let gone = peer().await;
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&gone), "a").endpoint(at(&pod), "a"));
        let (one, other) = (stand.client().await, stand.client().await);
        exchange(&one, &[&gone, &pod]).await;
        exchange(&other, &[&gone, &pod]).await;

        drop(gone);
        for client in [&one, &other] {
            // The one that is lost tells the proxy that nobody is there.
            client.send(b"lost at most").await.unwrap();
            client.send(b"question").await.unwrap();
            while hear(&pod).await.0 != b"question" {}
        }

        assert_eq!(stand.thread.counters.flows_moved.value(), 1);
        let (client, known) = (stand.client().await, stand.thread.counters.datagrams_lost.value());
        exchange(&client, &[&pod]).await;
        assert_eq!(stand.thread.counters.datagrams_lost.value(), known);
    });
}

#[test]
fn the_only_endpoint_is_asked_again_after_it_refused() {
    run(async {
        let pod = peer().await;
        let address = at(&pod);
        let stand = Stand::new(Config::default(), |world| world.endpoint(address, "a"));
        let client = stand.client().await;
        exchange(&client, &[&pod]).await;

        drop(pod);
        client.send(b"lost").await.unwrap();
        settle().await;
        let pod = Peer::bind(address).await.unwrap();

        exchange(&client, &[&pod]).await;
    });
}

#[test]
fn a_new_table_moves_the_flows_of_endpoints_that_are_gone() {
    run(async {
        let (one, other) = (peer().await, peer().await);
        let mut stand = Stand::new(Config::default(), |world| world.endpoint(at(&one), "a"));
        let client = stand.client().await;
        exchange(&client, &[&one]).await;

        stand.replace_endpoints_by(&other).await;

        exchange(&client, &[&other]).await;
        assert_eq!(stand.thread.counters.flows_moved.value(), 1);
    });
}

#[test]
fn what_an_endpoint_was_asked_before_its_client_left_is_still_answered() {
    run(async {
        let (one, other) = (peer().await, peer().await);
        let mut stand = Stand::new(Config::default(), |world| world.endpoint(at(&one), "a"));
        let client = stand.client().await;
        client.send(b"question").await.unwrap();
        let (_, from) = hear(&one).await;

        stand.replace_endpoints_by(&other).await;
        exchange(&client, &[&other]).await;
        one.send_to(b"late", from).await.unwrap();
        assert_eq!(hear(&client).await.0, b"late");

        // Nor is it lost where nobody else is there to ask.
        client.send(b"question").await.unwrap();
        let (_, from) = hear(&other).await;
        stand.adopt(|world| world.service.endpoints.clear()).await;
        other.send_to(b"later", from).await.unwrap();
        assert_eq!(hear(&client).await.0, b"later");

        // Who may not ask any more does not hear either.
        stand.adopt(|world| world.service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()]).await;
        assert!(client.try_recv(&mut [0; 6]).is_err());
        other.send_to(b"too late", from).await.unwrap();
        stand.adopt(|world| world.service.source_ranges.clear()).await;
        assert_eq!(stand.thread.counters.datagrams_out.value(), 3);
    });
}

#[test]
fn endpoints_without_a_client_are_heard_for_a_moment_and_make_room_first() {
    run(async {
        let pod = peer().await;
        let world = World::new(SocketAddr::from(([127, 0, 0, 1], 5300)), Transport::Udp).endpoint(at(&pod), "a");
        let listener = listener(&world, Config { udp_flows: 3, ..Config::default() });
        let client = |port| SocketAddr::from(([127, 0, 0, 2], port));
        let parted = || {
            let flows = listener.flows.borrow();
            flows.parted.iter().map(|(_, entry)| entry.flow.client.port()).collect::<Vec<_>>()
        };
        for port in [1, 2, 1, 2] {
            listener.open(client(port), None).unwrap();
        }
        // The second time each has left an endpoint, and there is room for three.
        assert_eq!(parted(), [2]);

        listener.open(client(3), None).unwrap();
        assert_eq!(parted(), [0; 0]);
        assert_eq!(listener.thread.counters.flows_displaced.value(), 0);

        listener.open(client(3), None).unwrap();
        let entry = listener.flows.borrow_mut().by_client.remove(&client(3)).unwrap();
        let begun = Instant::now();
        listener.part(entry);
        while !parted().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() >= LINGER);
        assert_eq!(listener.flows.borrow().by_client.len(), 2);
    });
}

#[test]
fn flows_to_a_node_out_of_sight_move_at_once_and_those_to_a_terminating_endpoint_stay() {
    run(async {
        let (near, far) = (peer().await, peer().await);
        let mut stand =
            Stand::new(Config::default(), |world| world.endpoint(at(&near), "near").endpoint(at(&far), "far"));
        let (one, other) = (stand.client().await, stand.client().await);
        let (_, of_one) = exchange(&one, &[&near, &far]).await;
        let (_, of_other) = exchange(&other, &[&near, &far]).await;

        stand
            .adopt(|world| {
                for endpoint in &mut world.service.endpoints {
                    endpoint.terminating = true;
                    endpoint.ready = false;
                }
                world.snapshot.unreachable.insert(NodeName::from("far"));
            })
            .await;

        let (_, now_of_one) = exchange(&one, &[&near]).await;
        let (_, now_of_other) = exchange(&other, &[&near]).await;
        let stayed = [of_one == now_of_one, of_other == now_of_other];
        assert_eq!(stayed.iter().filter(|stayed| **stayed).count(), 1);
    });
}

#[test]
fn clients_outside_the_source_ranges_are_not_served_and_flows_end_when_the_ranges_shrink() {
    run(async {
        let pod = peer().await;
        let mut stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let client = stand.client().await;
        exchange(&client, &[&pod]).await;

        stand.adopt(|world| world.service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()]).await;
        client.send(b"from outside").await.unwrap();
        while stand.thread.counters.forbidden.value() == 0 {
            tokio::task::yield_now().await;
        }
        stand.adopt(|world| world.service.source_ranges = vec!["127.0.0.0/8".parse().unwrap()]).await;

        client.send(b"from inside").await.unwrap();
        assert_eq!(hear(&pod).await.0, b"from inside");
    });
}

#[test]
fn a_datagram_that_claims_to_come_from_our_own_listener_is_dropped() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let listener = listener(&stand.world, Config::default());

        listener.pass_on(stand.world.key.socket, b"echo");

        assert_eq!(listener.thread.counters.forbidden.value(), 1);
        assert!(listener.flows.borrow().by_client.is_empty());
    });
}

#[test]
fn with_client_affinity_every_port_of_one_address_reaches_one_endpoint() {
    run(async {
        let (one, other) = (peer().await, peer().await);
        let stand = Stand::new(Config::default(), |mut world| {
            world.service.session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(60) };
            world.endpoint(at(&one), "a").endpoint(at(&other), "a")
        });

        let mut reached = Vec::new();
        for _ in 0..6 {
            reached.push(exchange(&stand.client().await, &[&one, &other]).await.0);
        }

        assert!(reached.iter().all(|pod| *pod == reached[0]), "{reached:?}");
    });
}

#[test]
fn when_flows_are_full_the_oldest_without_an_answer_makes_room() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config { udp_flows: 2, ..Config::default() }, |world| world.endpoint(at(&pod), "a"));
        let (friend, flood, late) = (stand.client().await, stand.client().await, stand.client().await);
        let (_, of_friend) = exchange(&friend, &[&pod]).await;

        flood.send(b"no answer").await.unwrap();
        let (_, of_flood) = hear(&pod).await;
        exchange(&late, &[&pod]).await;

        assert_eq!(exchange(&friend, &[&pod]).await.1, of_friend);
        flood.send(b"again").await.unwrap();
        assert_ne!(hear(&pod).await.1, of_flood);
        assert_eq!(stand.thread.counters.flows_displaced.value(), 2);
    });
}

#[test]
fn among_answered_flows_the_silent_one_makes_room() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let listener = listener(&stand.world, Config { udp_flows: 2, ..Config::default() });
        let clients: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::new(loopback().ip(), port)).collect();
        for client in &clients[..2] {
            let flow = listener.begin(*client).unwrap();
            listener.answered(&flow);
        }

        listener.flows.borrow_mut().look();
        listener.pass_on(clients[0], b"active");
        listener.begin(clients[2]).unwrap();

        let flows = listener.flows.borrow();
        assert!(flows.by_client.contains_key(&clients[0]) && !flows.by_client.contains_key(&clients[1]));
    });
}

#[test]
fn l_106_a_flow_ends_after_so_many_silent_looks_and_activity_starts_the_count_anew() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let listener = listener(&stand.world, Config::default());
        let client = SocketAddr::new(loopback().ip(), 1);
        let look = |times: u8| {
            (0..times).for_each(|_| listener.flows.borrow_mut().look());
            listener.flows.borrow().by_client.len()
        };

        listener.pass_on(client, b"x");
        assert_eq!(look(LOOKS), 1);
        listener.pass_on(client, b"x");
        assert_eq!(look(LOOKS), 1);
        assert_eq!(look(1), 0);

        assert!(listener.flows.borrow().asking.is_empty());
        settle().await;
        assert_eq!(listener.thread.balancer.borrow().in_flight(at(&pod)), 0);
    });
}

#[test]
fn a_closed_listener_lets_its_flows_and_tasks_go() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let client = stand.client().await;
        exchange(&client, &[&pod]).await;
        let held = Rc::strong_count(&stand.thread);

        stand.close.cancel();
        settle().await;

        assert_eq!(stand.thread.balancer.borrow().in_flight(at(&pod)), 0);
        assert!(Rc::strong_count(&stand.thread) < held);
        assert_eq!(Rc::strong_count(&stand.thread), 1);
    });
}

#[test]
fn a_draining_listener_still_answers_for_a_moment_and_counts_as_open() {
    run(async {
        let pod = peer().await;
        let stand = Stand::new(Config::default(), |world| world.endpoint(at(&pod), "a"));
        let client = stand.client().await;
        client.send(b"question").await.unwrap();
        let (_, from) = hear(&pod).await;

        stand.thread.draining.set(true);
        stand.close.cancel();
        settle().await;
        pod.send_to(b"answer", from).await.unwrap();

        assert_eq!(hear(&client).await.0, b"answer");
        assert_eq!(stand.thread.watches.len(), 1);
    });
}
