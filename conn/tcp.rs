// SPDX-License-Identifier: GPL-2.0

//! TCP over IPv4 and IPv6, in one network namespace.

use super::transport::{
    Link,
    Notify,
    Port,
    Transport, //
};
use crate::sys::net::Net;
use crate::sys::sock::{
    HookedSocket,
    Socket,
    Upcall, //
};
use core::net::SocketAddr;
use kernel::prelude::*;

/// Connections that may wait to be accepted: each peer once, and some more.
const BACKLOG: c_int = 512;

/// The network of a namespace.
pub(crate) struct Tcp(Net);

impl Tcp {
    /// The network of this namespace.
    pub(crate) fn new(net: Net) -> Self {
        Self(net)
    }
}

impl Transport for Tcp {
    fn listen(&self, addr: &SocketAddr, notify: KBox<dyn Notify>) -> Result<KBox<dyn Port>> {
        let socket = Socket::tcp(&self.0, addr)?;
        socket.bind(addr)?;
        let socket = HookedSocket::new(socket)?;
        socket.hook(KBox::new(Forward(notify), GFP_KERNEL)?)?;
        socket.listen(BACKLOG)?;
        Ok(KBox::new(TcpPort(socket), GFP_KERNEL)?)
    }

    fn connect(&self, from: &SocketAddr, to: &SocketAddr) -> Result<KBox<dyn Link>> {
        let socket = Socket::tcp(&self.0, to)?;
        if from.is_ipv4() == to.is_ipv4() {
            // The peer checks where its peers come from.
            let mut from = *from;
            from.set_port(0);
            socket.bind(&from)?;
        }
        socket.connect(to)?;
        Ok(KBox::new(TcpLink(HookedSocket::new(socket)?), GFP_KERNEL)?)
    }
}

/// Whatever a socket has to say, its owner is to look.
struct Forward(KBox<dyn Notify>);

impl Upcall for Forward {
    fn readable(&self) {
        self.0.notify();
    }

    fn writable(&self) {
        self.0.notify();
    }

    fn changed(&self) {
        self.0.notify();
    }
}

struct TcpLink(HookedSocket);

impl Link for TcpLink {
    fn attach(&self, notify: KBox<dyn Notify>) -> Result {
        self.0.hook(KBox::new(Forward(notify), GFP_KERNEL)?)
    }

    fn status(&self) -> Result {
        self.0.status()
    }

    fn send(&self, bufs: &[&[u8]]) -> Result<usize> {
        self.0.send(bufs)
    }

    fn recv(&self, buf: &mut [u8]) -> Result<usize> {
        self.0.recv(buf)
    }

    fn unread(&self) -> bool {
        self.0.unread()
    }

    fn close(&self, graceful: bool) {
        self.0.unhook();
        if !graceful {
            self.0.reset_on_close();
        }
        self.0.shutdown();
    }
}

struct TcpPort(HookedSocket);

impl Port for TcpPort {
    fn accept(&self) -> Result<(KBox<dyn Link>, SocketAddr)> {
        let accepted = self.0.accept()?;
        let link = KBox::new(TcpLink(HookedSocket::new(accepted.socket)?), GFP_KERNEL)?;
        Ok((link, accepted.peer))
    }

    fn close(&self) {
        self.0.unhook();
        self.0.shutdown();
    }
}
