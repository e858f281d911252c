// SPDX-License-Identifier: GPL-2.0

//! TCP over IPv4 and IPv6, in one network namespace.

use super::frame::HEADER_LEN;
use super::linger::Lingering;
use super::ring::{
    Member,
    Ring, //
};
use super::transport::{
    Guard,
    Link,
    Notify,
    Port,
    Transport,
    Within, //
};
use crate::sys::clock::Millis;
use crate::sys::net::Net;
use crate::sys::pages::Part;
use crate::sys::sock::{
    HookedSocket,
    Socket,
    Upcall,
    Upcalled, //
};
use core::net::SocketAddr;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Connections that may wait to be accepted: each peer's two, and some more.
const BACKLOG: c_int = 1024;

/// The network of a namespace.
pub(crate) struct Tcp {
    net: Net,
    /// The keys that all segments are signed with, if they are.
    ring: Option<Arc<Ring>>,
    lingering: Arc<Lingering>,
}

impl Tcp {
    /// The network of this namespace, open to those that have the keys, or to all.
    pub(crate) fn new(net: Net, ring: Option<Arc<Ring>>) -> Result<Self> {
        Ok(Self {
            net,
            ring,
            lingering: Lingering::new()?,
        })
    }
}

impl Transport for Tcp {
    fn listen(&self, addr: &SocketAddr, notify: KBox<dyn Notify>) -> Result<KBox<dyn Port>> {
        let socket = hooked(Socket::tcp(&self.net, addr)?)?;
        // Before anybody can connect.
        let guard = |ring: &Arc<Ring>| ring.guard_port(socket.clone());
        let member = self.ring.as_ref().map(guard).transpose()?;
        socket.bind(addr)?;
        socket.hook(KBox::new(Forward(notify), GFP_KERNEL)?)?;
        socket.listen(BACKLOG)?;
        let port = TcpPort {
            socket,
            member,
            lingering: self.lingering.clone(),
        };
        Ok(KBox::new(port, GFP_KERNEL)?)
    }

    fn connect(&self, from: &SocketAddr, to: &SocketAddr) -> Result<KBox<dyn Link>> {
        let socket = hooked(Socket::tcp(&self.net, to)?)?;
        let guard = |ring: &Arc<Ring>| ring.guard_dial(socket.clone(), to);
        let member = self.ring.as_ref().map(guard).transpose()?;
        if from.is_ipv4() == to.is_ipv4() {
            // The peer checks where its peers come from.
            let mut from = *from;
            from.set_port(0);
            socket.bind(&from)?;
        }
        socket.connect(to)?;
        link(socket, member, &self.lingering)
    }

    fn guard(&self) -> Option<&dyn Guard> {
        self.ring.as_ref().map(|ring| &**ring as &dyn Guard)
    }

    fn tend(&self) -> Millis {
        let keys = self.ring.as_ref().map(|ring| ring.tend());
        self.lingering.tend().min(keys.unwrap_or(Millis::MAX))
    }

    fn settle(&self) {
        self.lingering.settle();
    }
}

fn link(
    socket: Arc<HookedSocket>,
    member: Option<Member>,
    lingering: &Arc<Lingering>,
) -> Result<KBox<dyn Link>> {
    let link = TcpLink {
        socket,
        member,
        lingering: lingering.clone(),
    };
    Ok(KBox::new(link, GFP_KERNEL)?)
}

fn hooked(socket: Socket) -> Result<Arc<HookedSocket>> {
    Ok(Arc::new(HookedSocket::new(socket)?, GFP_KERNEL)?)
}

/// Whatever a socket has to say, its owner is to look.
struct Forward(KBox<dyn Notify>);

impl Upcall for Forward {
    fn readable(&self, _socket: &Upcalled<'_>) {
        self.0.notify();
    }

    fn writable(&self) {
        self.0.notify();
    }

    fn changed(&self) {
        self.0.notify();
    }
}

/// The same for a connection, whose owner may see to what has come in at once.
struct ForwardLink(KBox<dyn Notify>);

impl Upcall for ForwardLink {
    fn readable(&self, socket: &Upcalled<'_>) {
        self.0.arrived(socket);
    }

    fn writable(&self) {
        self.0.notify();
    }

    fn changed(&self) {
        self.0.notify();
    }
}

impl Within for Upcalled<'_> {
    fn peek(&self) -> Option<([u8; HEADER_LEN], usize)> {
        self.peek()
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn copy(&self, skip: usize, to: &mut [u8]) -> Result {
        self.copy(skip, to)
    }

    fn copy_many(&self, skip: usize, len: usize, to: &mut KVec<u8>) -> Result {
        self.copy_many(skip, len, to)
    }

    fn awaits(&self, len: usize) -> bool {
        self.awaits(len)
    }

    fn pass(&self, len: usize) -> Result {
        self.pass(len)
    }

    fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize> {
        self.send(bufs, more)
    }

    fn splice(&self, parts: &[Part<'_>], more: bool) -> Result<usize> {
        self.splice(parts, more)
    }

    fn ended(&self) -> bool {
        self.ended()
    }
}

struct TcpLink {
    socket: Arc<HookedSocket>,
    member: Option<Member>,
    lingering: Arc<Lingering>,
}

impl Link for TcpLink {
    fn attach(&self, notify: KBox<dyn Notify>) -> Result {
        self.socket
            .hook(KBox::new(ForwardLink(notify), GFP_KERNEL)?)
    }

    fn status(&self) -> Result {
        self.socket.status()?;
        if let Some(member) = &self.member {
            member.opened();
        }
        Ok(())
    }

    fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize> {
        self.socket.send(bufs, more)
    }

    fn splice(&self, parts: &[Part<'_>], more: bool) -> Result<usize> {
        self.socket.splice(parts, more)
    }

    fn recv(&self, to: &mut KVVec<u8>, most: usize) -> Result<usize> {
        self.socket.recv(to, most)
    }

    fn unread(&self) -> bool {
        self.socket.unread()
    }

    fn pending(&self) -> bool {
        self.socket.pending()
    }

    fn trim(&self) {
        self.socket.trim();
    }

    fn make_room(&self, len: usize) {
        self.socket.make_room(len);
    }

    fn key(&self) -> Option<u8> {
        self.member.as_ref()?.key()
    }

    fn close(&self, graceful: bool) {
        self.socket.unhook();
        if let Some(member) = &self.member {
            member.closing(graceful);
        }
        if graceful {
            self.lingering.close(&self.socket);
        } else {
            self.socket.reset_on_close();
            self.socket.shutdown();
        }
    }
}

struct TcpPort {
    socket: Arc<HookedSocket>,
    member: Option<Member>,
    lingering: Arc<Lingering>,
}

impl Port for TcpPort {
    fn accept(&self) -> Result<(KBox<dyn Link>, SocketAddr)> {
        let accepted = self.socket.accept()?;
        let socket = hooked(accepted.socket)?;
        let guard = |member: &Member| member.guard_accepted(socket.clone());
        let member = self.member.as_ref().map(guard).transpose()?;
        Ok((link(socket, member, &self.lingering)?, accepted.peer))
    }

    fn close(&self) {
        self.socket.unhook();
        self.socket.shutdown();
    }
}
