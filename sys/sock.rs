// SPDX-License-Identifier: GPL-2.0

//! In-kernel stream sockets: never blocking, with upcalls.
//!
//! C headers: [`include/linux/net.h`](srctree/include/linux/net.h),
//! [`include/net/sock.h`](srctree/include/net/sock.h)

use super::helpers;
use super::keys::Secret;
use super::net::Net;
use super::pages::Part;
use core::marker::PhantomData;
use core::net::{
    Ipv4Addr,
    Ipv6Addr,
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6, //
};
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::{
    new_mutex,
    Mutex, //
};
use kernel::types::Opaque;

/// What a socket tells its owner.
///
/// The calls come in softirq context, or in process context with bottom halves off, and hold locks
/// of the socket: they must not sleep and must not call back into the socket.
pub(crate) trait Upcall: Send + Sync {
    /// There is something to receive or accept, or the peer has closed. `socket` is what may be used of
    /// it at this moment, if it is connected.
    fn readable(&self, socket: &Upcalled<'_>);
    /// There is room to send again.
    fn writable(&self);
    /// The connection was established or has ended.
    fn changed(&self);
}

/// A socket. All operations are for process context; none of them waits for the network.
pub(crate) struct Socket(*mut bindings::socket);

// SAFETY: The kernel serialises operations on a socket.
unsafe impl Send for Socket {}
// SAFETY: As above.
unsafe impl Sync for Socket {}

/// Never wait, never raise SIGPIPE.
const SEND_FLAGS: u32 = bindings::MSG_DONTWAIT | bindings::MSG_NOSIGNAL;

/// Most buffers that one [`Socket::send`] takes.
pub(crate) const MAX_BUFS: usize = 32;

const _: () = assert!(MAX_BUFS <= helpers::KCCM_SPLICE_MAX as usize);

impl Socket {
    /// Makes a TCP socket for addresses of the family of `like`, set up for KCCM's way of use:
    /// no Nagle delay, allocations that do not wait for I/O.
    pub(crate) fn tcp(net: &Net, like: &SocketAddr) -> Result<Self> {
        let family = match like {
            SocketAddr::V4(_) => bindings::AF_INET,
            SocketAddr::V6(_) => bindings::AF_INET6,
        };
        let mut raw = core::ptr::null_mut();
        // SAFETY: `net` is valid, and so is `raw` for writing.
        to_result(unsafe {
            bindings::sock_create_kern(
                net.as_ptr(),
                family as c_int,
                bindings::sock_type_SOCK_STREAM as c_int,
                bindings::IPPROTO_TCP as c_int,
                &mut raw,
            )
        })?;
        let socket = Self(raw);
        socket.prepare();
        Ok(socket)
    }

    fn prepare(&self) {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_prepare(self.0) };
    }

    /// Binds it to a local address.
    pub(crate) fn bind(&self, addr: &SocketAddr) -> Result {
        let mut raw = RawAddr::from(addr);
        // SAFETY: The socket is valid, and so is the address for its length.
        to_result(unsafe { bindings::kernel_bind(self.0, raw.as_mut_ptr().cast(), raw.len()) })
    }

    /// Lets it listen, with room for `backlog` connections not yet accepted.
    pub(crate) fn listen(&self, backlog: c_int) -> Result {
        // SAFETY: The socket is valid.
        to_result(unsafe { bindings::kernel_listen(self.0, backlog) })
    }

    /// Begins to connect. [`Upcall::changed`] and [`Socket::status`] tell how it goes on.
    pub(crate) fn connect(&self, addr: &SocketAddr) -> Result {
        let mut raw = RawAddr::from(addr);
        // SAFETY: The socket is valid, and so is the address for its length.
        match to_result(unsafe {
            bindings::kernel_connect(
                self.0,
                raw.as_mut_ptr().cast(),
                raw.len(),
                bindings::O_NONBLOCK as c_int,
            )
        }) {
            Err(e) if e == EINPROGRESS => Ok(()),
            other => other,
        }
    }

    /// Takes a connection that came in on this listening socket, whose hook is `hook`; `EAGAIN` when
    /// there is none.
    fn accept(&self, hook: &Hook) -> Result<Accepted> {
        let mut raw = core::ptr::null_mut();
        // SAFETY: The socket is valid, and so is `raw` for writing.
        to_result(unsafe {
            bindings::kernel_accept(self.0, &mut raw, bindings::O_NONBLOCK as c_int)
        })?;
        let socket = Self(raw);
        // SAFETY: The new socket is valid, and it was accepted from the one with this hook, whose
        // saved callbacks it is given back. The hook is borrowed, so it stays installed meanwhile, and
        // nobody writes what is read of it.
        unsafe { helpers::kccm_sock_unhook_child(raw, hook.0.raw.get()) };
        socket.prepare();
        let peer = socket.peer_addr()?;
        Ok(Accepted { socket, peer })
    }

    /// The address of the other end.
    fn peer_addr(&self) -> Result<SocketAddr> {
        let mut raw = RawAddr::zeroed();
        // SAFETY: The socket is valid; the storage has room for any address.
        let len = unsafe { bindings::kernel_getpeername(self.0, raw.as_mut_ptr().cast()) };
        if len < 0 {
            return Err(Error::from_errno(len));
        }
        raw.to_addr().ok_or(EAFNOSUPPORT)
    }

    /// Whether it is connected: `EINPROGRESS` while it is not yet, another error when it failed.
    pub(crate) fn status(&self) -> Result {
        // SAFETY: The socket is valid.
        to_result(unsafe { helpers::kccm_sock_status(self.0) })
    }

    /// Sends what there is room for of `bufs`, one after the other, at most [`MAX_BUFS`] of them.
    /// `more`: the next call follows at once, and what it sends may go with the end of this.
    ///
    /// Returns how many bytes that was; `EAGAIN` if none, and then [`Upcall::writable`] follows.
    pub(crate) fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize> {
        let mut msg = bindings::msghdr {
            msg_flags: SEND_FLAGS | if more { bindings::MSG_MORE } else { 0 },
            ..Default::default()
        };
        let send = |vec: &mut [bindings::kvec], total| {
            // SAFETY: The socket is valid; the vector describes `bufs`, which are only read, and
            // outlives the call, during which TCP copies them.
            unsafe {
                bindings::kernel_sendmsg(self.0, &mut msg, vec.as_mut_ptr(), vec.len(), total)
            }
        };
        count(gathered(bufs, send))
    }

    /// The same for bytes that are not written to any more, at most [`MAX_BUFS`] parts: TCP refers to
    /// their pages instead of copying them.
    pub(crate) fn splice(&self, parts: &[Part<'_>], more: bool) -> Result<usize> {
        spliced(parts, |vec, n, total| {
            // SAFETY: The socket is valid; the vector describes parts of pages, to which TCP takes
            // references of its own.
            unsafe { helpers::kccm_sock_splice(self.0, vec, n, total, more) }
        })
    }

    /// Receives at most `most` bytes to the end of `to`, as far as there is memory for them. Returns how
    /// many; 0 at the end of the stream; `EAGAIN` when there is nothing now, and then
    /// [`Upcall::readable`] follows.
    pub(crate) fn recv(&self, to: &mut KVVec<u8>, most: usize) -> Result<usize> {
        let room = to.spare_capacity_mut();
        let len = room.len().min(most);
        if len == 0 {
            // What TCP says then could be taken for the end of the stream.
            return Err(EINVAL);
        }
        let mut vec = bindings::kvec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: len,
        };
        let mut msg = bindings::msghdr::default();
        // SAFETY: The socket is valid; the vector describes memory that is ours to write.
        let received = unsafe {
            bindings::kernel_recvmsg(
                self.0,
                &mut msg,
                &mut vec,
                1,
                len,
                bindings::MSG_DONTWAIT as c_int,
            )
        };
        let received = count(received)?.min(len);
        // SAFETY: There was room for so many, and they have been written.
        unsafe { to.inc_len(received) };
        Ok(received)
    }

    /// Whether something has come in that was not received yet.
    pub(crate) fn unread(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_unread(self.0) }
    }

    /// Whether [`Socket::recv`] would find something: bytes, the end of the stream or an error.
    pub(crate) fn pending(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_pending(self.0) }
    }

    /// Lets go of memory for what is sent that it does not need while it sends little.
    pub(crate) fn trim(&self) {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_trim(self.0) };
    }

    /// Lets so many more bytes be sent at once than there would be room for, or 256 MiB.
    pub(crate) fn make_room(&self, len: usize) {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_make_room(self.0, len.min(1 << 28) as c_uint) };
    }

    /// Ends the connection in this direction.
    pub(crate) fn shutdown_sending(&self) {
        // SAFETY: The socket is valid. A socket that is not connected returns an error that does not
        // matter.
        unsafe { bindings::kernel_sock_shutdown(self.0, bindings::sock_shutdown_cmd_SHUT_WR) };
    }

    /// Whether nothing that was sent before it was shut down is still under way.
    pub(crate) fn is_settled(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_settled(self.0) }
    }

    /// Something that changes whenever the other end acknowledges more of what was sent.
    pub(crate) fn acknowledged(&self) -> u32 {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_acknowledged(self.0) }
    }

    /// Ends the connection in both directions.
    pub(crate) fn shutdown(&self) {
        // SAFETY: The socket is valid. A socket that is not connected returns an error that does not
        // matter.
        unsafe { bindings::kernel_sock_shutdown(self.0, bindings::sock_shutdown_cmd_SHUT_RDWR) };
    }

    /// From now on nothing comes in that is not signed with one of the socket's keys (TCP-AO).
    pub(crate) fn require_key(&self) -> Result {
        // SAFETY: The socket is valid.
        to_result(unsafe { helpers::kccm_sock_ao_require(self.0) })
    }

    /// Gives it a key, good for any peer that has the same under the same number. `sign`: sign with
    /// it, on a socket that does not listen and is not connected yet.
    pub(crate) fn add_key(&self, id: u8, secret: &Secret, sign: bool) -> Result {
        let bytes = secret.bytes();
        // SAFETY: The socket is valid, and so are the bytes, which are only read and copied.
        to_result(unsafe {
            helpers::kccm_sock_ao_add(self.0, id, bytes.as_ptr(), bytes.len() as u32, sign)
        })
    }

    /// Asks the other end to sign with a key that this one has. It does if it has it, too.
    pub(crate) fn ask_for_key(&self, id: u8) -> Result {
        // SAFETY: The socket is valid.
        to_result(unsafe { helpers::kccm_sock_ao_ask(self.0, id) })
    }

    /// Takes a key away; `EBUSY` while it is signed with or asked for. May sleep for some time.
    pub(crate) fn forget_key(&self, id: u8) -> Result {
        // SAFETY: The socket is valid.
        to_result(unsafe { helpers::kccm_sock_ao_forget(self.0, id) })
    }

    /// The keys that it has and what they are used for; `ENOENT` when it never had one.
    pub(crate) fn keys(&self) -> Result<KeyUse> {
        let mut raw = helpers::kccm_ao_look::default();
        // SAFETY: The socket is valid, and so is `raw` for writing.
        to_result(unsafe { helpers::kccm_sock_ao_look(self.0, &mut raw) })?;
        let mut found = KeyUse::new(u8::try_from(raw.sends).ok(), u8::try_from(raw.asks).ok());
        found.dropped = Dropped {
            not_signed: raw.not_signed,
            mismatched: raw.mismatched,
            unknown: raw.unknown,
        };
        for key in raw.keys.iter().take(raw.nr_keys as usize) {
            found.push(key.id, key.good);
        }
        Ok(found)
    }

    /// Makes closing the socket reset the connection rather than linger for a peer that is gone.
    pub(crate) fn reset_on_close(&self) {
        // SAFETY: The socket is valid.
        unsafe { helpers::kccm_sock_reset_on_close(self.0) };
    }
}

impl Drop for Socket {
    /// Resets the connection unless it has come to its end, see `kccm_sock_release()`.
    fn drop(&mut self) {
        // SAFETY: The socket is valid and ours; whoever installed a hook has removed it,
        // by the contract of `Hook::install()`.
        unsafe { helpers::kccm_sock_release(self.0) };
    }
}

/// Segments that were not let in, by what was wrong with their signatures.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Dropped {
    /// They had none.
    pub(crate) not_signed: u64,
    /// They were signed with another secret.
    pub(crate) mismatched: u64,
    /// They were signed with a key whose number the socket does not have.
    pub(crate) unknown: u64,
}

impl Dropped {
    /// All three, in the order of the fields.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [self.not_signed, self.mismatched, self.unknown]
    }
}

/// Most keys that a socket is given.
pub(crate) const MAX_KEYS: usize = helpers::KCCM_AO_KEYS_MAX as usize;

/// The keys of a socket, and what they are used for.
#[derive(Clone, Copy, Default)]
pub(crate) struct KeyUse {
    /// What was dropped.
    pub(crate) dropped: Dropped,
    /// The key that is signed with.
    pub(crate) sends: Option<u8>,
    /// The key that the other end is asked to sign with.
    pub(crate) asks: Option<u8>,
    keys: [(u8, u64); MAX_KEYS],
    len: usize,
}

impl KeyUse {
    /// No keys yet; which of them is signed with, and which is asked for.
    pub(crate) fn new(sends: Option<u8>, asks: Option<u8>) -> Self {
        Self {
            sends,
            asks,
            ..Self::default()
        }
    }

    /// Enters a key, and how many segments have come in signed with it.
    pub(crate) fn push(&mut self, id: u8, good: u64) {
        if let Some(place) = self.keys.get_mut(self.len) {
            *place = (id, good);
            self.len += 1;
        }
    }

    /// The keys, each with how many segments have come in signed with it.
    pub(crate) fn keys(&self) -> &[(u8, u64)] {
        &self.keys[..self.len]
    }
}

/// Whether this kernel has TCP-AO.
pub(crate) fn can_sign() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_ao_supported() }
}

/// A connection that came in.
pub(crate) struct Accepted {
    /// The connection.
    pub(crate) socket: Socket,
    /// Where it came from.
    pub(crate) peer: SocketAddr,
}

/// A socket that may have upcalls.
pub(crate) struct HookedSocket {
    // Declared first, so that it is dropped before the socket.
    hook: Pin<KBox<Mutex<State>>>,
    socket: Socket,
}

/// Whether a socket has upcalls.
enum State {
    /// Not yet.
    Quiet,
    /// It has.
    Hooked(Hook),
    /// It had, or could have had, and will not again.
    Unhooked,
}

impl HookedSocket {
    /// Takes a socket over.
    pub(crate) fn new(socket: Socket) -> Result<Self> {
        Ok(Self {
            hook: KBox::pin_init(new_mutex!(State::Quiet, "HookedSocket::hook"), GFP_KERNEL)?,
            socket,
        })
    }

    /// Lets the socket call `upcall` from now on. What happened before is not reported. `ESHUTDOWN`
    /// after [`HookedSocket::unhook`]: nobody would unhook it again.
    pub(crate) fn hook(&self, upcall: KBox<dyn Upcall>) -> Result {
        let mut hook = self.hook.lock();
        if matches!(*hook, State::Unhooked) {
            return Err(ESHUTDOWN);
        }
        *hook = State::Quiet;
        // SAFETY: The hook is dropped by `unhook()` or with `self`, before the socket.
        *hook = State::Hooked(unsafe { Hook::install(&self.socket, upcall) }?);
        Ok(())
    }

    /// Ends the upcalls for good: when this returns, none is running or will.
    pub(crate) fn unhook(&self) {
        *self.hook.lock() = State::Unhooked;
    }

    /// [`Socket::accept`], on a socket with a hook.
    pub(crate) fn accept(&self) -> Result<Accepted> {
        match &*self.hook.lock() {
            State::Hooked(hook) => self.socket.accept(hook),
            State::Quiet | State::Unhooked => Err(ESHUTDOWN),
        }
    }
}

impl core::ops::Deref for HookedSocket {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.socket
    }
}

/// The upcalls of one socket: they come for as long as this lives, and not afterwards.
struct Hook(KBox<HookInner>);

struct HookInner {
    raw: Opaque<helpers::kccm_sock_hook>,
    upcall: KBox<dyn Upcall>,
}

// SAFETY: Nothing in the C part belongs to a thread: installing and removing the hook may be done by
// different ones. The upcall is `Send + Sync`.
unsafe impl Send for Hook {}
// SAFETY: While a hook is installed its C part is only read: by upcalls, and by `Socket::accept()`. It
// is written before and after, by whoever makes or drops the hook; an upcall cannot see that, as it
// finds the hook under sk_callback_lock only while it is installed, nor can `accept()`, which borrows
// it. The upcall is `Send + Sync`.
unsafe impl Sync for Hook {}

impl Hook {
    /// Lets the socket call `upcall`. What happened before is not reported: look once after this.
    ///
    /// # Safety
    ///
    /// The hook must be dropped before the socket is.
    unsafe fn install(socket: &Socket, upcall: KBox<dyn Upcall>) -> Result<Self> {
        let hook = KBox::new(
            HookInner {
                raw: Opaque::zeroed(),
                upcall,
            },
            GFP_KERNEL,
        )?;
        let raw = hook.raw.get();
        let ctx = core::ptr::from_ref(&*hook).cast_mut().cast();
        // SAFETY: `raw` is valid and not yet known to anybody else.
        unsafe {
            raw.write(helpers::kccm_sock_hook {
                ctx,
                readable: Some(readable),
                writable: Some(writable),
                changed: Some(changed),
                ..Default::default()
            })
        };
        // SAFETY: Both are valid; the box does not move until `drop()` has removed the hook.
        unsafe { helpers::kccm_sock_hook_install(socket.0, raw) };
        Ok(Self(hook))
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        // SAFETY: The hook was installed, and its socket still exists by the contract of
        // `install()`. Afterwards no upcall runs, so the box may go.
        unsafe { helpers::kccm_sock_hook_remove(self.0.raw.get()) };
    }
}

/// The upcall behind the context that `Hook::install()` gave to C.
///
/// # Safety
///
/// `ctx` must be that context, and the hook still installed.
unsafe fn upcall<'a>(ctx: *mut c_void) -> &'a dyn Upcall {
    // SAFETY: By the function's contract; C calls only while the hook is installed, and removing it
    // waits for such calls.
    unsafe { &*(*ctx.cast::<HookInner>()).upcall }
}

/// # Safety
///
/// Called only by an installed hook, with its context.
unsafe extern "C" fn readable(ctx: *mut c_void, sk: *mut bindings::sock) {
    // SAFETY: C hands over the hook's own context.
    unsafe { upcall(ctx) }.readable(&Upcalled(sk, PhantomData));
}

/// # Safety
///
/// Called only by an installed hook, with its context.
unsafe extern "C" fn writable(ctx: *mut c_void) {
    // SAFETY: C hands over the hook's own context.
    unsafe { upcall(ctx) }.writable();
}

/// # Safety
///
/// Called only by an installed hook, with its context.
unsafe extern "C" fn changed(ctx: *mut c_void) {
    // SAFETY: C hands over the hook's own context.
    unsafe { upcall(ctx) }.changed();
}

/// A connected socket within its own [`Upcall::readable`]: what can be done with it there, without
/// anybody having to be woken first. Nothing of this sleeps.
pub(crate) struct Upcalled<'a>(*mut bindings::sock, PhantomData<&'a ()>);

impl Upcalled<'_> {
    /// The first `N` bytes of what has come in, which stay there, and how many there are in all. `None`
    /// if there are fewer, or it would take more than a look.
    pub(crate) fn peek<const N: usize>(&self) -> Option<([u8; N], usize)> {
        let mut buf = [0; N];
        // SAFETY: The socket is in its upcall, for as long as `self` lives; `buf` has room for `N`.
        let there =
            unsafe { helpers::kccm_upcall_peek(self.0, buf.as_mut_ptr().cast(), N as c_uint) };
        (there > 0).then_some((buf, there as usize))
    }

    /// Whether nothing has come in.
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: The socket is in its upcall.
        unsafe { helpers::kccm_upcall_empty(self.0) }
    }

    /// Copies what has come in behind the first `skip` bytes to `to`, and leaves it there. As many must be
    /// there.
    pub(crate) fn copy(&self, skip: usize, to: &mut [u8]) -> Result {
        // SAFETY: `to` is ours to write.
        unsafe { self.copy_to(skip, to.as_mut_ptr(), to.len()) }
    }

    /// The same with `len` bytes, to the end of `to`, which has room for them.
    pub(crate) fn copy_many(&self, skip: usize, len: usize, to: &mut KVec<u8>) -> Result {
        let room = to.spare_capacity_mut();
        if room.len() < len {
            return Err(EINVAL);
        }
        // SAFETY: There is room for `len` bytes.
        unsafe { self.copy_to(skip, room.as_mut_ptr().cast(), len) }?;
        // SAFETY: There was room for so many, and they have been written.
        unsafe { to.inc_len(len) };
        Ok(())
    }

    /// # Safety
    ///
    /// `len` bytes at `to` must be ours to write.
    unsafe fn copy_to(&self, skip: usize, to: *mut u8, len: usize) -> Result {
        // SAFETY: The socket is in its upcall; for the bytes, by the function's contract.
        to_result(unsafe {
            helpers::kccm_upcall_copy(self.0, skip as c_uint, to.cast(), len as c_uint)
        })
    }

    /// Whether so many bytes, with those that are there, come in before any is taken, as far as can be
    /// told; then those that are there are acknowledged.
    pub(crate) fn awaits(&self, len: usize) -> bool {
        // SAFETY: The socket is in its upcall.
        unsafe { helpers::kccm_upcall_await(self.0, len as c_uint) }
    }

    /// Takes so many bytes of what has come in, which must be there, and throws them away. On an error the
    /// stream is of no more use.
    pub(crate) fn pass(&self, len: usize) -> Result {
        // SAFETY: The socket is in its upcall.
        to_result(unsafe { helpers::kccm_upcall_pass(self.0, len as c_uint) })
    }

    /// [`Socket::send`], from here.
    pub(crate) fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize> {
        let send = |vec: &mut [bindings::kvec], total| {
            // SAFETY: The socket is in its upcall; the vector describes `bufs`, which are only read, and
            // outlives the call, during which TCP copies them.
            unsafe {
                helpers::kccm_upcall_send(
                    self.0,
                    vec.as_mut_ptr(),
                    vec.len() as c_uint,
                    total as c_uint,
                    more,
                )
            }
        };
        count(gathered(bufs, send))
    }

    /// [`Socket::splice`], from here.
    pub(crate) fn splice(&self, parts: &[Part<'_>], more: bool) -> Result<usize> {
        spliced(parts, |vec, n, total| {
            // SAFETY: The socket is in its upcall; the vector describes parts of pages, to which TCP
            // takes references of its own.
            unsafe { helpers::kccm_upcall_splice(self.0, vec, n, total, more) }
        })
    }

    /// Whether the other side has ended its stream, or there was an error.
    pub(crate) fn ended(&self) -> bool {
        // SAFETY: The socket is in its upcall.
        unsafe { helpers::kccm_upcall_ended(self.0) }
    }
}

/// Has `send` called with a description of the first [`MAX_BUFS`] of some buffers, which are only to be
/// read, and their length.
fn gathered(bufs: &[&[u8]], send: impl FnOnce(&mut [bindings::kvec], usize) -> c_int) -> c_int {
    let all = bufs.iter().copied();
    if bufs.len() <= 2 {
        // Most frames go alone: a header and a payload.
        gathered_in::<2>(all, send)
    } else {
        gathered_in::<MAX_BUFS>(all, send)
    }
}

/// Has `send` called with a description of the first [`MAX_BUFS`] of some parts of pages: where it is,
/// how many they are, and their length. Returns how many bytes it has sent.
fn spliced(
    parts: &[Part<'_>],
    send: impl FnOnce(*const bindings::kvec, c_uint, c_uint) -> c_int,
) -> Result<usize> {
    let bytes = parts.iter().map(Part::bytes);
    count(gathered_in::<MAX_BUFS>(bytes, |vec, total| {
        send(vec.as_ptr(), vec.len() as c_uint, total as c_uint)
    }))
}

fn gathered_in<'a, const BUFS: usize>(
    bufs: impl Iterator<Item = &'a [u8]>,
    send: impl FnOnce(&mut [bindings::kvec], usize) -> c_int,
) -> c_int {
    let mut vec = [bindings::kvec::default(); BUFS];
    let (mut n, mut total) = (0, 0);
    for (v, buf) in vec.iter_mut().zip(bufs) {
        v.iov_base = buf.as_ptr().cast_mut().cast();
        v.iov_len = buf.len();
        n += 1;
        total += buf.len();
    }
    send(&mut vec[..n], total)
}

/// A byte count or an error.
fn count(ret: c_int) -> Result<usize> {
    usize::try_from(ret).map_err(|_| Error::from_errno(ret))
}

/// A socket address as the kernel has it: the size of `struct sockaddr_storage`.
#[repr(C, align(8))]
struct RawAddr([u8; 128]);

impl RawAddr {
    const fn zeroed() -> Self {
        Self([0; 128])
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// The length of the address in it.
    fn len(&self) -> c_int {
        if u32::from(self.family()) == bindings::AF_INET6 {
            size_of::<bindings::sockaddr_in6>() as c_int
        } else {
            size_of::<bindings::sockaddr_in>() as c_int
        }
    }

    fn family(&self) -> u16 {
        u16::from_ne_bytes([self.0[0], self.0[1]])
    }

    /// Both layouts are fixed by the kernel's user-space ABI: family, port in network order, and
    /// for IPv4 the address, for IPv6 the flow label, the address and the scope.
    fn to_addr(&self) -> Option<SocketAddr> {
        let b = &self.0;
        let port = u16::from_be_bytes([b[2], b[3]]);
        match u32::from(self.family()) {
            bindings::AF_INET => {
                let ip = Ipv4Addr::new(b[4], b[5], b[6], b[7]);
                Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
            }
            bindings::AF_INET6 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&b[8..24]);
                let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
                let v6 = SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope);
                Some(SocketAddr::V6(v6))
            }
            _ => None,
        }
    }
}

impl From<&SocketAddr> for RawAddr {
    fn from(addr: &SocketAddr) -> Self {
        let mut raw = Self::zeroed();
        let b = &mut raw.0;
        b[2..4].copy_from_slice(&addr.port().to_be_bytes());
        let family = match addr {
            SocketAddr::V4(v4) => {
                b[4..8].copy_from_slice(&v4.ip().octets());
                bindings::AF_INET
            }
            SocketAddr::V6(v6) => {
                b[8..24].copy_from_slice(&v6.ip().octets());
                b[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                bindings::AF_INET6
            }
        };
        b[0..2].copy_from_slice(&(family as u16).to_ne_bytes());
        raw
    }
}
