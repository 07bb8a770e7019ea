// Package peernet connects the nodes of a cluster. It does not depend on Raft:
// package raftstore runs its groups over it.
//
// A [Network] listens for one node, and dials other nodes by name. Each
// connection, a [Conn], has one [Purpose], and belongs to one group if the
// purpose has groups. [Network.Dial] opens a connection; at the other end, the
// [Handler] of its purpose serves it.
//
// A connection begins with a handshake, in which both ends prove that they have
// the cluster's key before either reveals anything else (handshake.go; the
// messages are in messages.go). A peer that has the key is trusted to be
// honest: it may be faulty or outdated, but it is not malicious. After the
// handshake the connection carries a stream of bytes in frames with checksums
// (conn.go). TLS is optional (tls.go). Without TLS, an attacker that can alter
// packets can hijack a connection after its handshake.
//
// [Network.Close] breaks all connections and waits for the handlers. It does
// not unblock a handler that waits for something other than its connection: the
// caller ends that wait first, then closes the network.
//
// All methods are safe for concurrent use. A Conn has one reader and one writer
// at a time.
package peernet
