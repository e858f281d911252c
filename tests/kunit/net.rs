// SPDX-License-Identifier: GPL-2.0

//! Networks for tests (P3): one that is not TCP, one that can be tampered with, and a client that
//! speaks to a node as no node would.

use super::harness::{
    eventually,
    pause,
    Cluster,
    Here,
    SOON_MS, //
};
use super::keys::Chest;
use super::sys;
use crate::config::NodeId;
use crate::conn::frame::tests::PING;
use crate::conn::frame::{
    Assembler,
    Bounds,
    Header,
    Numbers,
    HEADER_LEN, //
};
use crate::conn::hello;
use crate::conn::hello::{
    Answer,
    Identity,
    Refusal,
    Standing, //
};
use crate::conn::tcp::Tcp;
use crate::conn::transport::{
    Link,
    Notify,
    Port,
    Transport,
    Within, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::net::Net;
use core::net::{
    IpAddr,
    Ipv4Addr,
    SocketAddr, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{new_mutex, Arc, Mutex};

/// What the nodes of a cluster have below them.
pub(super) enum Below {
    /// TCP.
    Tcp,
    /// TCP, with a gate for each node.
    Gated(KVec<Arc<Gate>>),
    /// TCP, each in a network namespace of its own.
    Apart(Spaces),
    /// No sockets at all.
    Memory(Arc<Memory>),
    /// TCP, with keys for each node that has some.
    Keyed(KVec<Option<Arc<Chest>>>),
}

impl Below {
    /// The network of a node.
    pub(super) fn transport(&self, id: NodeId) -> Result<KBox<dyn Transport>> {
        let ring = match self {
            Below::Keyed(chests) => match &chests[usize::from(id)] {
                Some(chest) => Some(chest.ring(id)?),
                None => None,
            },
            _ => None,
        };
        let tcp = Tcp::new(Net::current(), ring)?;
        Ok(match self {
            Below::Tcp | Below::Keyed(_) => KBox::new(tcp, GFP_KERNEL)?,
            Below::Gated(gates) => {
                KBox::new(Gated(gates[usize::from(id)].clone(), tcp), GFP_KERNEL)?
            }
            Below::Apart(spaces) => KBox::new(Tcp::new(spaces.net(id)?, None)?, GFP_KERNEL)?,
            Below::Memory(memory) => KBox::new(memory.clone(), GFP_KERNEL)?,
        })
    }
}

// ---- Networks apart from each other.

/// Two network namespaces, joined by a pair of virtual Ethernet devices.
pub(super) struct Spaces(());

impl Spaces {
    /// Two of them, with node 0 to live in one, and node 1 in the other.
    ///
    /// Only user space can make network namespaces. busybox has all that this takes.
    pub(super) fn new() -> Result<Self> {
        let spaces = Self(());
        sys::shell(
            c"set -e
            mkdir /run/kccm-0 /run/kccm-1
            touch /run/kccm-0/net /run/kccm-1/net
            unshare --net=/run/kccm-0/net ip link add kccm0 type veth
            unshare --net=/run/kccm-1/net sh -c '
                nsenter --net=/run/kccm-0/net ip link set veth0 netns $$ &&
                ip link set veth0 name kccm1 &&
                ip link set lo up'
            nsenter --net=/run/kccm-0/net ip link set lo up
            nsenter --net=/run/kccm-0/net ip link set kccm0 up
            nsenter --net=/run/kccm-0/net ip addr add 10.9.0.1/24 dev kccm0
            nsenter --net=/run/kccm-1/net ip link set kccm1 up
            nsenter --net=/run/kccm-1/net ip addr add 10.9.0.2/24 dev kccm1",
        )?;
        Ok(spaces)
    }

    /// Where a node of these lives.
    pub(super) fn ip(id: NodeId) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 9, 0, id as u8 + 1))
    }

    /// The namespace of a node.
    pub(super) fn net(&self, id: NodeId) -> Result<Net> {
        sys::net_of(if id == 0 { c"kccm0" } else { c"kccm1" })
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        // They are gone when no node holds them any more.
        let _ = sys::shell(
            c"umount /run/kccm-0/net /run/kccm-1/net
            rm -r /run/kccm-0 /run/kccm-1",
        );
    }
}

// ---- A network in memory.

/// A network that is not TCP: pipes. They are short, and give out few bytes at a time, so that nothing
/// that is sent comes in one piece.
#[pin_data]
pub(super) struct Memory {
    /// Most bytes that are received at once.
    piece: usize,
    /// Links that there are.
    links: Atomic<usize>,
    #[pin]
    ports: Mutex<KVec<(SocketAddr, Arc<Door>)>>,
}

/// Bytes that can be on their way.
const PIPE: usize = 1000;

/// Where connections come in.
#[pin_data]
struct Door {
    #[pin]
    inner: SpinLockBh<DoorInner>,
}

struct DoorInner {
    /// Has room for more before the lock is taken.
    waiting: KVec<(MemoryLink, SocketAddr)>,
    notify: Option<KBox<dyn Notify>>,
}

/// One direction of a connection.
#[pin_data]
struct Pipe {
    #[pin]
    inner: SpinLockBh<PipeInner>,
}

struct PipeInner {
    bytes: [u8; PIPE],
    start: usize,
    len: usize,
    ended: bool,
    reset: bool,
    /// Who is told of bytes, and who of room.
    reader: Option<Arc<KBox<dyn Notify>>>,
    writer: Option<Arc<KBox<dyn Notify>>>,
}

struct MemoryLink {
    memory: Arc<Memory>,
    closed: Atomic<bool>,
    inward: Arc<Pipe>,
    outward: Arc<Pipe>,
}

impl Memory {
    /// One that gives out so many bytes at a time.
    pub(super) fn new(piece: usize) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                piece,
                links: Atomic::new(0),
                ports <- new_mutex!(KVec::new(), "Memory::ports"),
            }),
            GFP_KERNEL,
        )
    }

    /// How many ends of links there are.
    pub(super) fn links(&self) -> usize {
        self.links.load(Relaxed)
    }

    fn door(&self, addr: &SocketAddr) -> Option<Arc<Door>> {
        let ports = self.ports.lock();
        let found = ports.iter().find(|(at, _)| at == addr);
        found.map(|(_, door)| door.clone())
    }
}

impl Transport for Arc<Memory> {
    fn listen(&self, addr: &SocketAddr, notify: KBox<dyn Notify>) -> Result<KBox<dyn Port>> {
        let inner = DoorInner {
            waiting: KVec::new(),
            notify: Some(notify),
        };
        let door = Arc::pin_init(
            pin_init!(Door { inner <- new_spinlock_bh!(inner, "Door::inner") }),
            GFP_KERNEL,
        )?;
        self.ports.lock().push((*addr, door.clone()), GFP_KERNEL)?;
        Ok(KBox::new(MemoryPort(self.clone(), door), GFP_KERNEL)?)
    }

    fn connect(&self, from: &SocketAddr, to: &SocketAddr) -> Result<KBox<dyn Link>> {
        let door = self.door(to).ok_or(ECONNREFUSED)?;
        let (one, other) = (Pipe::new()?, Pipe::new()?);
        let ours = MemoryLink::new(self, one.clone(), other.clone());
        let theirs = MemoryLink::new(self, other, one);
        let ours = KBox::new(ours, GFP_KERNEL)?;
        let mut room = KVec::with_capacity(64, GFP_KERNEL)?;
        let mut inner = door.inner.lock();
        if inner.notify.is_none() || inner.waiting.len() == room.capacity() {
            drop(inner);
            return Err(ECONNREFUSED);
        }
        if inner.waiting.capacity() == 0 {
            core::mem::swap(&mut inner.waiting, &mut room);
        }
        let pushed = inner.waiting.push_within_capacity((theirs, *from));
        if let Some(notify) = &inner.notify {
            notify.notify();
        }
        drop(inner);
        pushed.map_err(|_| EINVAL)?;
        Ok(ours)
    }
}

struct MemoryPort(Arc<Memory>, Arc<Door>);

impl Port for MemoryPort {
    fn accept(&self) -> Result<(KBox<dyn Link>, SocketAddr)> {
        let accepted = {
            let mut inner = self.1.inner.lock();
            if inner.waiting.is_empty() {
                return Err(EAGAIN);
            }
            inner.waiting.remove(0).map_err(|_| EIO)?
        };
        let (link, from) = accepted;
        Ok((KBox::new(link, GFP_KERNEL)?, from))
    }

    fn close(&self) {
        let (notify, waiting) = {
            let mut inner = self.1.inner.lock();
            (inner.notify.take(), core::mem::take(&mut inner.waiting))
        };
        drop((notify, waiting));
        self.0
            .ports
            .lock()
            .retain(|(_, door)| !Arc::ptr_eq(door, &self.1));
    }
}

impl Pipe {
    fn new() -> Result<Arc<Self>> {
        let inner = PipeInner {
            bytes: [0; PIPE],
            start: 0,
            len: 0,
            ended: false,
            reset: false,
            reader: None,
            writer: None,
        };
        Arc::pin_init(
            pin_init!(Self { inner <- new_spinlock_bh!(inner, "Pipe::inner") }),
            GFP_KERNEL,
        )
    }

    /// No more bytes; discards those on their way if there was a `reset`.
    fn end(&self, reset: bool) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        if reset {
            inner.reset = true;
            inner.len = 0;
        }
        for who in [&inner.reader, &inner.writer].into_iter().flatten() {
            who.notify();
        }
    }
}

impl MemoryLink {
    fn new(memory: &Arc<Memory>, inward: Arc<Pipe>, outward: Arc<Pipe>) -> Self {
        memory.links.fetch_add(1, Relaxed);
        Self {
            memory: memory.clone(),
            closed: Atomic::new(false),
            inward,
            outward,
        }
    }

    /// Notifies nobody any more.
    fn detach(&self) {
        let reader = self.inward.inner.lock().reader.take();
        let writer = self.outward.inner.lock().writer.take();
        drop((reader, writer));
    }
}

impl Link for MemoryLink {
    fn attach(&self, notify: KBox<dyn Notify>) -> Result {
        let notify = Arc::new(notify, GFP_KERNEL)?;
        self.inward.inner.lock().reader = Some(notify.clone());
        self.outward.inner.lock().writer = Some(notify);
        if self.closed.load(Relaxed) {
            self.detach();
            return Err(ESHUTDOWN);
        }
        Ok(())
    }

    fn status(&self) -> Result {
        if self.inward.inner.lock().reset {
            return Err(ECONNRESET);
        }
        Ok(())
    }

    fn send(&self, bufs: &[&[u8]], _: bool) -> Result<usize> {
        let mut inner = self.outward.inner.lock();
        if inner.ended {
            return Err(EPIPE);
        }
        let mut sent = 0;
        for &byte in bufs.iter().copied().flatten() {
            if inner.len == PIPE {
                break;
            }
            let at = (inner.start + inner.len) % PIPE;
            inner.bytes[at] = byte;
            inner.len += 1;
            sent += 1;
        }
        if sent == 0 {
            return Err(EAGAIN);
        }
        if let Some(reader) = &inner.reader {
            reader.notify();
        }
        Ok(sent)
    }

    fn recv(&self, to: &mut KVVec<u8>, most: usize) -> Result<usize> {
        let mut inner = self.inward.inner.lock();
        if inner.reset {
            return Err(ECONNRESET);
        }
        let n = most.min(inner.len).min(self.memory.piece);
        if n == 0 {
            return if inner.ended { Ok(0) } else { Err(EAGAIN) };
        }
        for _ in 0..n {
            // There is memory for it.
            to.push_within_capacity(inner.bytes[inner.start])
                .map_err(|_| EINVAL)?;
            inner.start = (inner.start + 1) % PIPE;
        }
        inner.len -= n;
        if let Some(writer) = &inner.writer {
            writer.notify();
        }
        Ok(n)
    }

    fn unread(&self) -> bool {
        self.inward.inner.lock().len > 0
    }

    fn close(&self, graceful: bool) {
        self.closed.store(true, Relaxed);
        self.detach();
        self.inward.end(!graceful);
        self.outward.end(!graceful);
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.close(true);
        self.memory.links.fetch_sub(1, Relaxed);
    }
}

// ---- A network that can be tampered with.

/// What stands between a node and its network, and all that can be done to it there.
#[pin_data]
pub(super) struct Gate {
    /// What the node sends gets lost.
    mute: Atomic<bool>,
    /// What is sent to the node does not reach it.
    deaf: Atomic<bool>,
    /// The last byte of the address from which signs of life come without end, or 0.
    torrent: Atomic<u32>,
    /// How long each send takes, milliseconds, and each read of more than a stage.
    toll: Atomic<u64>,
    drag: Atomic<u64>,
    /// How often the node has looked for bytes from addresses with these last bytes, and how often
    /// it has sent some to them.
    looks: [Atomic<usize>; Gate::PLACES],
    sends: [Atomic<usize>; Gate::PLACES],
    /// How often there was no room for any of what it wanted to send.
    full: Atomic<usize>,
    /// What was sent last waits for more.
    corked: Atomic<bool>,
    /// Links that there are.
    links: Atomic<usize>,
    /// How often each operation was used, and how often by a thread whose allocations may wait for
    /// I/O.
    used: [Atomic<usize>; Operation::ALL.len()],
    exposed: [Atomic<usize>; Operation::ALL.len()],
    /// Done once before a link gets somebody to notify.
    #[pin]
    before_attach: Mutex<Option<KBox<dyn FnMut() + Send + Sync>>>,
}

impl Gate {
    const PLACES: usize = 8;

    /// An open one.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                mute: Atomic::new(false),
                deaf: Atomic::new(false),
                torrent: Atomic::new(0),
                toll: Atomic::new(0),
                drag: Atomic::new(0),
                looks: [const { Atomic::new(0) }; Self::PLACES],
                sends: [const { Atomic::new(0) }; Self::PLACES],
                full: Atomic::new(0),
                corked: Atomic::new(false),
                links: Atomic::new(0),
                used: [const { Atomic::new(0) }; Operation::ALL.len()],
                exposed: [const { Atomic::new(0) }; Operation::ALL.len()],
                before_attach <- new_mutex!(None, "Gate::before_attach"),
            }),
            GFP_KERNEL,
        )
    }

    /// Loses what the node sends, or no longer.
    pub(super) fn set_mute(&self, mute: bool) {
        self.mute.store(mute, Relaxed);
    }

    /// Loses what is sent to the node, or no longer.
    pub(super) fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Relaxed);
    }

    /// Lets signs of life come without end from an address, or no longer from any.
    pub(super) fn set_torrent(&self, from: Option<IpAddr>) {
        self.torrent.store(from.map_or(0, place), Relaxed);
    }

    /// Lets each send take so long.
    pub(super) fn set_toll(&self, ms: Millis) {
        self.toll.store(ms, Relaxed);
    }

    /// Lets each read of more than a stage, which is a long payload's, take so long.
    pub(super) fn set_drag(&self, ms: Millis) {
        self.drag.store(ms, Relaxed);
    }

    /// How often the node has looked for bytes from an address.
    pub(super) fn looks(&self, from: IpAddr) -> usize {
        self.looks[place(from) as usize % Self::PLACES].load(Relaxed)
    }

    /// How often there was no room for any of what it wanted to send.
    pub(super) fn full(&self) -> usize {
        self.full.load(Relaxed)
    }

    /// How often the node has sent bytes to an address, or begun to.
    pub(super) fn sends(&self, to: IpAddr) -> usize {
        self.sends[place(to) as usize % Self::PLACES].load(Relaxed)
    }

    /// Whether what the node has sent last waits for more.
    pub(super) fn corked(&self) -> bool {
        self.corked.load(Relaxed)
    }

    fn sending(&self, to: IpAddr, more: bool) {
        self.corked.store(more, Relaxed);
        self.sends[place(to) as usize % Self::PLACES].fetch_add(1, Relaxed);
    }

    /// How many links there are.
    pub(super) fn links(&self) -> usize {
        self.links.load(Relaxed)
    }

    /// How often an operation was used.
    pub(super) fn used(&self, operation: Operation) -> usize {
        self.used[operation as usize].load(Relaxed)
    }

    /// How often of these by a thread whose allocations may wait for I/O.
    pub(super) fn exposed(&self, operation: Operation) -> usize {
        self.exposed[operation as usize].load(Relaxed)
    }

    /// Takes note of an operation.
    fn note(&self, operation: Operation) {
        self.used[operation as usize].fetch_add(1, Relaxed);
        if !sys::noio() {
            self.exposed[operation as usize].fetch_add(1, Relaxed);
        }
    }

    /// Has something done before the next link gets somebody to notify.
    pub(super) fn before_attach(&self, what: impl FnMut() + Send + Sync + 'static) -> Result {
        let what = KBox::new(what, GFP_KERNEL)?;
        *self.before_attach.lock() = Some(what);
        Ok(())
    }
}

/// What is asked of a network.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Operation {
    Listen,
    Connect,
    Accept,
    Attach,
    Status,
    Send,
    Recv,
    Close,
}

impl Operation {
    /// All there are.
    pub(super) const ALL: [Self; 8] = [
        Self::Listen,
        Self::Connect,
        Self::Accept,
        Self::Attach,
        Self::Status,
        Self::Send,
        Self::Recv,
        Self::Close,
    ];
}

fn place(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3].into(),
        IpAddr::V6(ip) => ip.octets()[15].into(),
    }
}

struct Gated(Arc<Gate>, Tcp);

struct GatedLink {
    gate: Arc<Gate>,
    below: KBox<dyn Link>,
    remote: IpAddr,
}

impl GatedLink {
    fn new(gate: &Arc<Gate>, below: KBox<dyn Link>, remote: IpAddr) -> Result<KBox<Self>> {
        gate.links.fetch_add(1, Relaxed);
        let link = Self {
            gate: gate.clone(),
            below,
            remote,
        };
        Ok(KBox::new(link, GFP_KERNEL)?)
    }
}

impl Drop for GatedLink {
    fn drop(&mut self) {
        self.gate.links.fetch_sub(1, Relaxed);
    }
}

impl Transport for Gated {
    fn listen(&self, addr: &SocketAddr, notify: KBox<dyn Notify>) -> Result<KBox<dyn Port>> {
        self.0.note(Operation::Listen);
        let port = self.1.listen(addr, notify)?;
        Ok(KBox::new(GatedPort(self.0.clone(), port), GFP_KERNEL)?)
    }

    fn connect(&self, from: &SocketAddr, to: &SocketAddr) -> Result<KBox<dyn Link>> {
        self.0.note(Operation::Connect);
        let link = self.1.connect(from, to)?;
        Ok(GatedLink::new(&self.0, link, to.ip())?)
    }

    fn tend(&self) -> Millis {
        self.1.tend()
    }

    fn settle(&self) {
        self.1.settle();
    }
}

struct GatedPort(Arc<Gate>, KBox<dyn Port>);

impl Port for GatedPort {
    fn accept(&self) -> Result<(KBox<dyn Link>, SocketAddr)> {
        self.0.note(Operation::Accept);
        let (link, from) = self.1.accept()?;
        Ok((GatedLink::new(&self.0, link, from.ip())?, from))
    }

    fn close(&self) {
        self.0.note(Operation::Close);
        self.1.close();
    }
}

struct GatedNotify {
    gate: Arc<Gate>,
    above: KBox<dyn Notify>,
    remote: IpAddr,
}

impl Notify for GatedNotify {
    fn notify(&self) {
        if !self.gate.deaf.load(Relaxed) {
            self.above.notify();
        }
    }

    fn arrived(&self, link: &dyn Within) {
        let gate = &self.gate;
        if gate.deaf.load(Relaxed) {
            return;
        }
        // What takes time, a thread does.
        if gate.toll.load(Relaxed) > 0 || gate.torrent.load(Relaxed) == place(self.remote) {
            return self.above.notify();
        }
        let remote = self.remote;
        self.above.arrived(&GatedWithin { gate, link, remote });
    }
}

struct GatedWithin<'a> {
    gate: &'a Gate,
    link: &'a dyn Within,
    remote: IpAddr,
}

impl Within for GatedWithin<'_> {
    fn peek(&self) -> Option<([u8; HEADER_LEN], usize)> {
        self.link.peek()
    }

    fn is_empty(&self) -> bool {
        self.link.is_empty()
    }

    fn copy(&self, skip: usize, to: &mut [u8]) -> Result {
        self.link.copy(skip, to)
    }

    fn copy_many(&self, skip: usize, len: usize, to: &mut KVec<u8>) -> Result {
        self.link.copy_many(skip, len, to)
    }

    fn awaits(&self, len: usize) -> bool {
        self.link.awaits(len)
    }

    fn pass(&self, len: usize) -> Result {
        self.link.pass(len)
    }

    fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize> {
        self.gate.sending(self.remote, more);
        if self.gate.mute.load(Relaxed) {
            return Ok(bufs.iter().map(|buf| buf.len()).sum());
        }
        self.link.send(bufs, more)
    }

    fn ended(&self) -> bool {
        self.link.ended()
    }
}

/// A sign of life, as often as it fits.
fn fill_with_pings(to: &mut KVVec<u8>, most: usize) -> Result<usize> {
    let ping = PING.encode(Numbers::default());
    let pings = most / HEADER_LEN;
    for _ in 0..pings {
        to.extend_from_slice(&ping, GFP_KERNEL)?;
    }
    Ok(pings * HEADER_LEN)
}

impl Link for GatedLink {
    fn attach(&self, notify: KBox<dyn Notify>) -> Result {
        self.gate.note(Operation::Attach);
        let before = self.gate.before_attach.lock().take();
        if let Some(mut before) = before {
            before();
        }
        let notify = GatedNotify {
            gate: self.gate.clone(),
            above: notify,
            remote: self.remote,
        };
        self.below.attach(KBox::new(notify, GFP_KERNEL)?)
    }

    fn status(&self) -> Result {
        self.gate.note(Operation::Status);
        self.below.status()
    }

    fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize> {
        let gate = &self.gate;
        gate.note(Operation::Send);
        gate.sending(self.remote, more);
        match gate.toll.load(Relaxed) {
            0 => {}
            ms => pause(ms),
        }
        if gate.mute.load(Relaxed) {
            return Ok(bufs.iter().map(|buf| buf.len()).sum());
        }
        let sent = self.below.send(bufs, more);
        if sent == Err(EAGAIN) {
            gate.full.fetch_add(1, Relaxed);
        }
        sent
    }

    fn recv(&self, to: &mut KVVec<u8>, most: usize) -> Result<usize> {
        let gate = &self.gate;
        gate.note(Operation::Recv);
        gate.looks[place(self.remote) as usize % Gate::PLACES].fetch_add(1, Relaxed);
        if gate.deaf.load(Relaxed) {
            return Err(EAGAIN);
        }
        if gate.torrent.load(Relaxed) == place(self.remote) && most >= HEADER_LEN {
            return fill_with_pings(to, most);
        }
        if most > Assembler::STAGE {
            match gate.drag.load(Relaxed) {
                0 => {}
                ms => pause(ms),
            }
        }
        self.below.recv(to, most)
    }

    fn make_room(&self, len: usize) {
        self.below.make_room(len);
    }

    fn unread(&self) -> bool {
        !self.gate.deaf.load(Relaxed) && self.below.unread()
    }

    fn close(&self, graceful: bool) {
        self.gate.note(Operation::Close);
        self.below.close(graceful);
    }
}

// ---- Somebody who is no node.

/// Where somebody stands who has no session yet.
pub(super) fn anew(me: &Identity) -> Standing {
    Standing {
        granted: me.windows,
        ..Standing::default()
    }
}

/// A connection that says what it is told to.
pub(super) struct Client {
    link: KBox<dyn Link>,
    /// The number of the last frame that has one.
    seq: Atomic<u64>,
    /// What the node had received when it welcomed this.
    received: Atomic<u64>,
}

impl Client {
    /// A connection to a node.
    #[track_caller]
    pub(super) fn connect(from: IpAddr, to: SocketAddr) -> Result<Self> {
        let from = SocketAddr::new(from, 0);
        let link = Tcp::new(Net::current(), None)?.connect(&from, &to).here()?;
        // If it has been closed meanwhile, that will show.
        eventually(|| link.status() != Err(EINPROGRESS))?;
        Ok(Self::over(link))
    }

    fn over(link: KBox<dyn Link>) -> Self {
        Self {
            link,
            seq: Atomic::new(0),
            received: Atomic::new(0),
        }
    }

    /// A connection to node `to` that is established, as with the node `me`.
    #[track_caller]
    pub(super) fn join(cluster: &Cluster, me: &Identity, to: NodeId) -> Result<Self> {
        Self::join_at(cluster, me, to, anew(me))
    }

    /// The same, in some session.
    #[track_caller]
    pub(super) fn join_at(
        cluster: &Cluster,
        me: &Identity,
        to: NodeId,
        standing: Standing,
    ) -> Result<Self> {
        Self::join_on(hello::Channel::Main, cluster, me, to, standing)
    }

    /// The same, on some channel.
    #[track_caller]
    pub(super) fn join_on(
        channel: hello::Channel,
        cluster: &Cluster,
        me: &Identity,
        to: NodeId,
        standing: Standing,
    ) -> Result<Self> {
        let client = Self::connect(cluster.ip(me.id), cluster.addr(to))?;
        client.say(&hello::hello(me, to, channel, standing))?;
        match client.answer(me, to)? {
            None => {
                client.say(&client.frame(PING))?;
                Ok(client)
            }
            Some(refusal) => Err(refusal.errno()).here(),
        }
    }

    /// What node `to` answers the greeting of node `me`: why it refuses, or `None` for a welcome.
    #[track_caller]
    pub(super) fn answer(&self, me: &Identity, to: NodeId) -> Result<Option<Refusal>> {
        let bytes = self.hear().here()?;
        match hello::check_answer(&bytes, me, to) {
            Ok(Answer::Welcome(greeting)) => {
                self.received.store(greeting.standing.received, Relaxed);
                Ok(None)
            }
            Ok(Answer::Refused(refusal)) => Ok(Some(refusal)),
            Err(_) => Err(EPROTO).here(),
        }
    }

    /// What the node had received when it welcomed this.
    pub(super) fn welcome_received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Waits for a message of eight bytes. Returns its number and what is in it.
    #[track_caller]
    pub(super) fn hear_message(&self) -> Result<(u64, u64)> {
        const BOUNDS: Bounds = Bounds {
            message: 8,
            rcall: 0,
        };
        loop {
            let bytes = self.hear::<HEADER_LEN>().here()?;
            if let Ok(Header::Message { len: 8, .. }) = Header::parse(&bytes, BOUNDS) {
                let seq = bytes[8..16].first_chunk().ok_or(EIO)?;
                let body = self.hear().here()?;
                return Ok((u64::from_le_bytes(*seq), u64::from_le_bytes(body)));
            }
        }
    }

    /// Waits for a frame without a payload; what comes before it has none either.
    #[track_caller]
    pub(super) fn wait_for(&self, frame: Header) -> Result {
        while self.hear_frame()? != frame {}
        Ok(())
    }

    /// Waits for a frame, which has no payload.
    #[track_caller]
    pub(super) fn hear_frame(&self) -> Result<Header> {
        const BOUNDS: Bounds = Bounds {
            message: 0,
            rcall: 1 << 20,
        };
        let header = Header::parse(&self.hear().here()?, BOUNDS);
        header.map_err(|_| EPROTO).here()
    }

    /// The next frame, but for its payload. It acknowledges nothing.
    pub(super) fn frame(&self, header: Header) -> [u8; HEADER_LEN] {
        let seq = match header.is_sequenced() {
            true => self.seq.fetch_add(1, Relaxed) + 1,
            false => 0,
        };
        header.encode(Numbers { seq, ack: 0 })
    }

    /// Says something.
    #[track_caller]
    pub(super) fn say(&self, bytes: &[u8]) -> Result {
        self.tell(bytes).here()
    }

    /// Says something, to who may have stopped listening.
    pub(super) fn tell(&self, bytes: &[u8]) -> Result {
        let mut said = 0;
        let mut result = Ok(());
        eventually(|| {
            match self.link.send(&[&bytes[said..]], false) {
                Ok(n) => said += n,
                Err(e) if e == EAGAIN => {}
                Err(e) => result = Err(e),
            }
            said == bytes.len() || result.is_err()
        })?;
        result
    }

    /// Hears so many bytes; `ECONNRESET` when they do not come any more.
    pub(super) fn hear<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = KVVec::with_capacity(N, GFP_KERNEL)?;
        let begin = clock::now();
        while bytes.len() < N {
            let missing = N - bytes.len();
            match self.link.recv(&mut bytes, missing) {
                Ok(0) => return Err(ECONNRESET),
                Ok(_) => {}
                Err(e) if e != EAGAIN => return Err(e),
                Err(_) if clock::now() - begin > SOON_MS => return Err(ETIMEDOUT),
                Err(_) => pause(1),
            }
        }
        bytes.first_chunk().copied().ok_or(ERANGE)
    }

    /// Whether the other side has closed, whatever it said before.
    pub(super) fn is_closed(&self) -> bool {
        let Ok(mut bytes) = KVVec::with_capacity(64, GFP_KERNEL) else {
            return false;
        };
        loop {
            bytes.clear();
            match self.link.recv(&mut bytes, 64) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e != EAGAIN,
            }
        }
    }

    /// Waits until the other side has closed.
    #[track_caller]
    pub(super) fn wait_closed(&self) -> Result {
        eventually(|| self.is_closed())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.link.close(true);
    }
}

/// A port at which no node listens.
pub(super) struct Trap {
    port: KBox<dyn Port>,
}

struct Nobody;

impl Notify for Nobody {
    fn notify(&self) {}
}

impl Trap {
    /// Listens where a node is expected.
    pub(super) fn set(at: SocketAddr) -> Result<Self> {
        let notify = KBox::new(Nobody, GFP_KERNEL)?;
        let port = Tcp::new(Net::current(), None)?.listen(&at, notify).here()?;
        Ok(Self { port })
    }

    /// Takes the next connection.
    #[track_caller]
    pub(super) fn catch(&self) -> Result<Client> {
        let mut caught = Err(EAGAIN);
        eventually(|| {
            caught = self.port.accept();
            // One that has gone again already, on a busy machine, is as good as none.
            !matches!(caught, Err(EAGAIN | ENOTCONN))
        })?;
        let (link, _) = caught.here()?;
        Ok(Client::over(link))
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.port.close();
    }
}
