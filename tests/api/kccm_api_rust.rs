// SPDX-License-Identifier: GPL-2.0

//! Uses all of `include/kccm.rs` as another module would.
//!
//! Loaded without `peer`, it serves. Loaded with it, where another node serves, it makes the checks
//! below, and is loaded only if all hold; then it says who comes and goes. `tests/cluster/test_api.py`
//! does both.

#[path = "../../include/kccm.rs"]
mod kccm;

use kccm::{
    Call,
    CallError,
    Class,
    Event,
    Info,
    RecvError,
    Registration,
    Reply,
    Source,
    Subscription,
    Tag,
    Timeout, //
};
use kernel::prelude::*;
use kernel::sync::{
    new_mutex,
    Arc, //
};
use kernel::time::{
    delay::fsleep,
    Delta, //
};
use kernel::ModuleMetadata;

module! {
    type: Api,
    name: "kccm_api_rust",
    authors: ["The KCCM maintainers"],
    description: "KCCM test: the whole of the Rust API",
    license: "GPL",
    params: {
        peer: i32 {
            default: -1,
            description: "Node to make the checks with, which serves (default: only serve)",
        },
        misuse: i32 {
            default: -1,
            description: "Node that serves, to have it drop a registration in a handler",
        },
        fill: i32 {
            default: -1,
            description: "Node to send to until that fails, and loading with it",
        },
    },
}

// ---- What others may call.

/// Replies with its arguments; the status is their length.
const ECHO: u32 = 0x6170_6900;
/// Sends its arguments back as a message, with tag [`BOUNCE`].
const BOUNCE: u32 = ECHO + 1;
/// Sends what it knows of the call as a message, with tag [`NOTE`].
const NOTE: u32 = ECHO + 2;
/// Fails, with a reply.
const FAIL: u32 = ECHO + 3;
/// Replies with 100 bytes, whether there is room or not.
const LONGER: u32 = ECHO + 4;
/// Returns more than a status can be.
const HUGE: u32 = ECHO + 5;
/// Takes 300 ms.
const SLOW: u32 = ECHO + 6;
/// Short, and tries everything that waits; the status is how often it could.
const WAITS: u32 = ECHO + 7;
/// Drops the registration of [`DROPPED`].
const DROP: u32 = ECHO + 8;
const DROPPED: u32 = ECHO + 9;
/// Is one for softirqs. Returns its arguments, and how many of its attempts at what it must not do have
/// been refused.
const QUICK: u32 = ECHO + 11;
/// Sends its arguments back as [`BOUNCE`] does, but for bulk.
const BULK: u32 = ECHO + 12;
/// Is not there.
const NOTHING: u32 = ECHO + 10;

const MAX_ARGS: usize = 200;

fn echo(call: &mut Call<'_>) -> Result<u32> {
    let mut bytes = [0; MAX_ARGS];
    let len = call.args().len();
    bytes[..len].copy_from_slice(call.args());
    call.reply(&bytes[..len]);
    Ok(len as u32)
}

fn bounce(call: &mut Call<'_>) -> Result<u32> {
    kccm::send(call.source(), BOUNCE, call.args(), Timeout::Forever)?;
    Ok(0)
}

fn bulk(call: &mut Call<'_>) -> Result<u32> {
    kccm::send_bulk(call.source(), BOUNCE, call.args(), Timeout::Forever)?;
    Ok(0)
}

fn note(call: &mut Call<'_>) -> Result<u32> {
    let wants = u32::from(call.wants_reply());
    let seen = [call.source(), call.func(), wants, call.reply_max() as u32];
    let mut bytes = [0; 16];
    for (to, number) in bytes.chunks_mut(4).zip(seen) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    kccm::try_send(call.source(), NOTE, &bytes)?;
    Ok(0)
}

fn fail(call: &mut Call<'_>) -> Result<u32> {
    call.reply(b"first");
    call.reply(b"no");
    Err(EBUSY)
}

fn longer(call: &mut Call<'_>) -> Result<u32> {
    call.reply(&[7; 100]);
    Ok(0)
}

fn slow(_: &mut Call<'_>) -> Result<u32> {
    fsleep(Delta::from_millis(300));
    Ok(0)
}

fn quick(call: &mut Call<'_>) -> Result<u32> {
    let (source, forever) = (call.source(), Timeout::Forever);
    let refused = [
        kccm::send(source, NOTHING, b"", Timeout::NoWait).err(),
        kccm::rcall(source, NOTHING, b"", Timeout::NoWait).err(),
        kccm::rcall_sync(source, ECHO, b"", &mut [], forever)
            .map_err(Error::from)
            .err(),
        kccm::wait_up(source, forever).err(),
    ];
    echo(call)?;
    let refused = refused.iter().filter(|e| **e == Some(EDEADLK));
    Ok(refused.count() as u32)
}

fn waits(call: &mut Call<'_>) -> Result<u32> {
    let (source, forever) = (call.source(), Timeout::Forever);
    let results = [
        kccm::recv(source, NOTHING, &mut [], forever)
            .map_err(Error::from)
            .err(),
        kccm::recv(Source::Any, NOTHING, &mut [], Timeout::Millis(1))
            .map_err(Error::from)
            .err(),
        kccm::recv_vec(source, NOTHING, forever).err(),
        kccm::probe(source, NOTHING, forever).err(),
        kccm::rcall_sync(source, ECHO, &[], &mut [], forever)
            .map_err(Error::from)
            .err(),
        Subscription::new(&crate::LocalModule::THIS_MODULE, |_, _, _| {}).err(),
    ];
    // What does not wait is allowed.
    let none = kccm::try_recv(source, NOTHING, &mut []) == Ok(None);
    let could = results
        .iter()
        .filter(|error| **error != Some(EDEADLK))
        .count();
    Ok(could as u32 + u32::from(!none))
}

// ---- The checks.

/// Returns an error from the check unless both are equal.
macro_rules! same {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    let what = stringify!($left);
                    pr_err!(
                        "line {}: {} is {:?}, not {:?}\n",
                        line!(),
                        what,
                        left,
                        right
                    );
                    return Err(EBADE);
                }
            }
        }
    };
}

const SOON: Timeout = Timeout::Millis(20_000);
const NOT_LONG: Timeout = Timeout::Millis(20);
const MAX_MESSAGE: usize = 16 << 20;
const MAX_RCALL: usize = 1 << 20;
/// A node that the cluster does not have.
const NOBODY: u32 = kccm::MAX_NODES - 1;

type Check = fn(&'static ThisModule, u32) -> Result;

const CHECKS: [(&str, Check); 10] = [
    ("cluster", cluster),
    ("nothing to receive", nothing_to_receive),
    ("messages", messages),
    ("sending", sending),
    ("synchronous calls", synchronous_calls),
    ("asynchronous calls", asynchronous_calls),
    ("waiting in a short handler", waiting_in_a_short_handler),
    ("calls where they come in", calls_where_they_come_in),
    ("registrations", registrations),
    ("subscriptions", subscriptions),
];

fn cluster(_: &'static ThisModule, peer: u32) -> Result {
    let me = kccm::node_id()?;
    let members = kccm::members()?;
    same!(members.is_sorted(), true);
    same!(
        (members.contains(&me), members.contains(&peer)),
        (true, true)
    );
    same!(kccm::incarnation()? != 0, true);
    same!((kccm::is_up(me), kccm::is_up(peer)), (true, true));
    kccm::wait_up(me, Timeout::NoWait)?;
    kccm::wait_up(peer, Timeout::NoWait)?;
    kccm::wait_all_up(SOON)?;
    for nobody in [NOBODY, kccm::MAX_NODES, i32::MAX as u32, u32::MAX] {
        same!(kccm::is_up(nobody), false);
        same!(kccm::wait_up(nobody, Timeout::Forever), Err(EINVAL));
    }
    Ok(())
}

fn nothing_to_receive(_: &'static ThisModule, peer: u32) -> Result {
    let mut buf = [0; 8];
    let other = |error| Err(RecvError::Other(error));
    same!(kccm::try_recv(peer, NOTHING, &mut buf), Ok(None));
    same!(kccm::try_recv(Source::Any, NOTHING, &mut buf), Ok(None));
    same!(
        kccm::recv(peer, NOTHING, &mut buf, Timeout::NoWait),
        other(EAGAIN)
    );
    same!(
        kccm::recv(peer, NOTHING, &mut buf, Timeout::Millis(0)),
        other(EAGAIN)
    );
    same!(
        kccm::recv(peer, NOTHING, &mut buf, NOT_LONG),
        other(ETIMEDOUT)
    );
    same!(kccm::probe(peer, NOTHING, Timeout::NoWait), Err(EAGAIN));
    same!(kccm::probe(Source::Any, NOTHING, NOT_LONG), Err(ETIMEDOUT));
    let vec = |timeout| kccm::recv_vec(peer, NOTHING, timeout).err();
    same!(vec(Timeout::NoWait), Some(EAGAIN));
    same!(vec(NOT_LONG), Some(ETIMEDOUT));
    for nobody in [NOBODY, u32::MAX] {
        same!(kccm::recv(nobody, Tag::Any, &mut buf, SOON), other(EINVAL));
        same!(kccm::probe(nobody, Tag::Any, SOON), Err(EINVAL));
        same!(kccm::recv_vec(nobody, Tag::Any, SOON).err(), Some(EINVAL));
    }
    Ok(())
}

fn messages(_: &'static ThisModule, peer: u32) -> Result {
    let bytes: [u8; 100] = core::array::from_fn(|i| i as u8);
    let mut buf = [0; 200];
    let info = Info {
        source: peer,
        tag: BOUNCE,
        len: bytes.len(),
    };
    // A buffer that is too short, again and again: the message stays.
    kccm::rcall(peer, BOUNCE, &bytes, SOON)?;
    for _ in 0..2 {
        let short = kccm::recv(Source::Any, BOUNCE, &mut buf[..99], SOON);
        same!(short, Err(RecvError::TooLong(info)));
        same!(short.map_err(Error::from), Err(EMSGSIZE));
        same!(
            kccm::try_recv(peer, Tag::Exact(BOUNCE), &mut []),
            Err(RecvError::TooLong(info))
        );
    }
    same!(
        kccm::probe(Source::Node(peer), BOUNCE, Timeout::NoWait),
        Ok(info)
    );
    same!(kccm::probe(Source::Any, BOUNCE, Timeout::Forever), Ok(info));
    same!(
        kccm::recv(peer, BOUNCE, &mut buf, Timeout::Forever),
        Ok(info)
    );
    same!(buf[..100], bytes);
    same!(buf[100..], [0; 100]);
    same!(kccm::try_recv(peer, BOUNCE, &mut buf), Ok(None));
    // Of whatever length.
    for len in [100, 0, 1] {
        for func in [BOUNCE, BULK] {
            kccm::rcall(peer, func, &bytes[..len], SOON)?;
            let (got, message) = kccm::recv_vec(peer, BOUNCE, SOON)?;
            same!(got, Info { len, ..info });
            same!(message[..], bytes[..len]);
        }
    }
    // The shortest, into no buffer.
    kccm::rcall(peer, BOUNCE, &[], SOON)?;
    same!(
        kccm::recv(peer, BOUNCE, &mut [], SOON),
        Ok(Info { len: 0, ..info })
    );
    Ok(())
}

fn sending(_: &'static ThisModule, peer: u32) -> Result {
    let me = kccm::node_id()?;
    for nobody in [me, NOBODY, kccm::MAX_NODES, u32::MAX] {
        same!(kccm::send(nobody, NOTHING, b"x", SOON), Err(EINVAL));
        same!(kccm::send_bulk(nobody, NOTHING, b"x", SOON), Err(EINVAL));
        same!(kccm::try_send(nobody, NOTHING, b"x"), Err(EINVAL));
    }
    let long = KVVec::from_elem(0, MAX_MESSAGE + 1, GFP_KERNEL)?;
    same!(kccm::send(peer, NOTHING, &long, SOON), Err(EMSGSIZE));
    same!(kccm::send_bulk(peer, NOTHING, &long, SOON), Err(EMSGSIZE));
    same!(kccm::try_send(peer, NOTHING, &long), Err(EMSGSIZE));
    Ok(())
}

fn synchronous_calls(_: &'static ThisModule, peer: u32) -> Result {
    let mut buf = [0; 100];
    let other = |error| Err(CallError::Other(error));
    let echoed = kccm::rcall_sync(peer, ECHO, b"hello", &mut buf, SOON);
    same!(echoed, Ok(Reply { status: 5, len: 5 }));
    same!(&buf[..6], b"hello\0");
    let nothing = kccm::rcall_sync(peer, ECHO, b"", &mut [], Timeout::Forever);
    same!(nothing, Ok(Reply { status: 0, len: 0 }));

    let failed = kccm::rcall_sync(peer, FAIL, b"", &mut buf, SOON);
    let status = EBUSY.to_errno();
    same!(failed, Err(CallError::Remote { status, len: 2 }));
    same!(failed.map_err(Error::from), Err(EREMOTEIO));
    same!(&buf[..2], b"no");

    same!(
        kccm::rcall_sync(peer, LONGER, b"", &mut buf, SOON),
        Ok(Reply {
            status: 0,
            len: 100
        })
    );
    for room in [0, 99] {
        let short = kccm::rcall_sync(peer, LONGER, b"", &mut buf[..room], SOON);
        same!(short, Err(CallError::TooLong(100)));
        same!(short.map_err(Error::from), Err(EMSGSIZE));
    }
    let huge = kccm::rcall_sync(peer, HUGE, b"", &mut [], SOON);
    same!(
        huge,
        Ok(Reply {
            status: i32::MAX as u32,
            len: 0
        })
    );

    same!(
        kccm::rcall_sync(peer, NOTHING, b"", &mut buf, SOON),
        other(EOPNOTSUPP)
    );
    let many = [1; MAX_ARGS + 1];
    same!(
        kccm::rcall_sync(peer, ECHO, &many, &mut buf, SOON),
        other(E2BIG)
    );
    let long = KVVec::from_elem(0, MAX_RCALL + 1, GFP_KERNEL)?;
    same!(
        kccm::rcall_sync(peer, ECHO, &long, &mut buf, SOON),
        other(EMSGSIZE)
    );
    same!(
        kccm::rcall_sync(peer, SLOW, b"", &mut buf, NOT_LONG),
        other(ETIMEDOUT)
    );
    same!(
        kccm::rcall_sync(peer, ECHO, b"", &mut buf, Timeout::NoWait),
        other(EINVAL)
    );
    for nobody in [kccm::node_id()?, NOBODY, u32::MAX] {
        same!(
            kccm::rcall_sync(nobody, ECHO, b"", &mut buf, SOON),
            other(EINVAL)
        );
    }
    Ok(())
}

fn asynchronous_calls(_: &'static ThisModule, peer: u32) -> Result {
    let me = kccm::node_id()?;
    let noted = |expected: [u32; 4]| -> Result {
        let mut buf = [0; 16];
        kccm::recv(peer, NOTE, &mut buf, SOON)?;
        for (got, wanted) in buf.chunks(4).zip(expected) {
            same!(got, &wanted.to_le_bytes());
        }
        Ok(())
    };
    kccm::rcall(peer, NOTE, b"", SOON)?;
    noted([me, NOTE, 0, 0])?;
    kccm::rcall_sync(peer, NOTE, b"", &mut [0; 9], SOON)?;
    noted([me, NOTE, 1, 9])?;
    // Nobody is told what comes of it.
    for func in [FAIL, LONGER, NOTHING] {
        kccm::rcall(peer, func, b"", SOON)?;
    }
    let long = KVVec::from_elem(0, MAX_RCALL + 1, GFP_KERNEL)?;
    same!(kccm::rcall(peer, NOTE, &long, SOON), Err(EMSGSIZE));
    for nobody in [me, NOBODY, u32::MAX] {
        same!(kccm::rcall(nobody, NOTE, b"", SOON), Err(EINVAL));
    }
    Ok(())
}

fn waiting_in_a_short_handler(_: &'static ThisModule, peer: u32) -> Result {
    let waited = kccm::rcall_sync(peer, WAITS, b"", &mut [], SOON);
    same!(waited, Ok(Reply { status: 0, len: 0 }));
    Ok(())
}

fn calls_where_they_come_in(_: &'static ThisModule, peer: u32) -> Result {
    // Short ones, and one that the listener takes.
    for len in [0, 8, MAX_ARGS] {
        let args = [0x5a; MAX_ARGS];
        let mut reply = [0; MAX_ARGS];
        for _ in 0..50 {
            let called = kccm::rcall_sync(peer, QUICK, &args[..len], &mut reply, SOON);
            same!(called, Ok(Reply { status: 4, len }));
            same!(reply[..len] == args[..len], true);
        }
    }
    Ok(())
}

fn registrations(module: &'static ThisModule, _: u32) -> Result {
    let held = Arc::new(0, GFP_KERNEL)?;
    let new = |func, max_args| {
        let theirs = held.clone();
        let handler = move |_: &mut Call<'_>| Ok(*theirs);
        Registration::new(module, func, Class::Long, c"test", max_args, handler)
    };
    same!(new(ECHO, 0).err(), Some(EEXIST));
    same!(new(NOTHING, MAX_RCALL + 1).err(), Some(EINVAL));
    for _ in 0..3 {
        let first = new(NOTHING, MAX_RCALL)?;
        same!(new(NOTHING, 0).err(), Some(EEXIST));
        drop(first);
    }
    // Nothing is kept of what has been dropped, or was never registered.
    same!(Arc::into_unique_or_drop(held).is_some(), true);
    Ok(())
}

fn subscriptions(module: &'static ThisModule, peer: u32) -> Result {
    let told = Arc::pin_init(new_mutex!(None), GFP_KERNEL)?;
    let theirs = told.clone();
    let subscription = Subscription::new(module, move |node, event, incarnation| {
        if node == peer {
            *theirs.lock() = Some((event, incarnation != 0));
        }
    })?;
    // Peers that are up are reported first.
    while told.lock().is_none() {
        fsleep(Delta::from_millis(5));
    }
    same!(*told.lock(), Some((Event::Up, true)));
    drop(subscription);
    same!(Arc::into_unique_or_drop(told).is_some(), true);
    Ok(())
}

// ---- The module.

/// While it is loaded, other nodes can make their checks with this one.
struct Api {
    _handlers: KVec<Registration>,
    _subscription: Option<Subscription>,
}

impl kernel::Module for Api {
    fn init(module: &'static ThisModule) -> Result<Self> {
        if let Ok(node) = u32::try_from(*module_parameters::fill.value_ref()) {
            return Err(fill(node));
        }
        let handlers = serve(module)?;
        if let Ok(node) = u32::try_from(*module_parameters::misuse.value_ref()) {
            misuse(node)?;
        }
        let mut subscription = None;
        if let Ok(peer) = u32::try_from(*module_parameters::peer.value_ref()) {
            kccm::wait_up(peer, SOON)?;
            check(module, peer)?;
            subscription = Some(Subscription::new(module, tell)?);
        }
        Ok(Self {
            _handlers: handlers,
            _subscription: subscription,
        })
    }
}

/// Makes all checks.
fn check(module: &'static ThisModule, peer: u32) -> Result {
    let mut result = Ok(());
    for (name, check) in CHECKS {
        match check(module, peer) {
            Ok(()) => pr_info!("{}: as it should be\n", name),
            Err(e) => {
                pr_err!("{}: failed: {:?}\n", name, e);
                result = Err(e);
            }
        }
    }
    result
}

fn tell(node: u32, event: Event, incarnation: u64) {
    pr_info!(
        "node {} is {:?}, incarnation {:016x}\n",
        node,
        event,
        incarnation
    );
}

/// Has a handler do what it must not, and checks that no harm comes of it: what it wanted to drop is
/// still there, and served.
fn misuse(node: u32) -> Result {
    for (func, status) in [(DROPPED, 1), (DROP, 0), (DROPPED, 1)] {
        let reply = kccm::rcall_sync(node, func, b"", &mut [], SOON);
        same!(reply, Ok(Reply { status, len: 0 }));
    }
    Ok(())
}

/// Sends until it cannot.
fn fill(node: u32) -> Error {
    let Ok(message) = KVVec::from_elem(0, 1 << 20, GFP_KERNEL) else {
        return ENOMEM;
    };
    loop {
        if let Err(e) = kccm::send(node, NOTHING, &message, Timeout::Forever) {
            return e;
        }
    }
}

fn serve(module: &'static ThisModule) -> Result<KVec<Registration>> {
    type Serve = fn(&mut Call<'_>) -> Result<u32>;
    let all: [(u32, Class, Serve); 11] = [
        (QUICK, Class::Softirq, quick),
        (ECHO, Class::Long, echo),
        (BOUNCE, Class::Long, bounce),
        (BULK, Class::Long, bulk),
        (NOTE, Class::Short, note),
        (FAIL, Class::Short, fail),
        (LONGER, Class::Short, longer),
        (HUGE, Class::Short, |_| Ok(u32::MAX)),
        (SLOW, Class::Long, slow),
        (WAITS, Class::Short, waits),
        (DROPPED, Class::Short, |_| Ok(1)),
    ];
    let mut handlers = KVec::new();
    for (func, class, function) in all {
        let handler = Registration::new(module, func, class, c"api", MAX_ARGS, function)?;
        handlers.push(handler, GFP_KERNEL)?;
    }
    // What it must not do: drop a registration, that of the last one.
    let last = Arc::pin_init(new_mutex!(handlers.pop()), GFP_KERNEL)?;
    let drops = move |_: &mut Call<'_>| {
        drop(last.lock().take());
        Ok(0)
    };
    let handler = Registration::new(module, DROP, Class::Long, c"api", 0, drops)?;
    handlers.push(handler, GFP_KERNEL)?;
    Ok(handlers)
}
