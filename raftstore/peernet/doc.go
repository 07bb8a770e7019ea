// Package peernet carries connections between the nodes of a cluster. It knows
// nothing of Raft: package raftstore runs its groups over it.
//
// A [Network] is one node's listener and its dialing of other nodes by name.
// Each connection, a [Conn], is for one [Purpose], and for one group where the
// purpose has groups. [Network.Dial] makes one; at the other end the [Handler]
// of its purpose serves it.
//
// Before either end learns anything of the other, both prove in a handshake
// that they have the cluster's key (handshake.go; the messages are in
// messages.go). A peer that has the key is taken to be honest: it may be broken,
// old, or lost, but it does not lie. After the handshake the connection carries
// a stream of bytes in frames with checksums (conn.go). TLS is optional
// (tls.go). Without TLS, an attacker that can alter packets can take a
// connection over once it is made.
//
// [Network.Close] breaks all connections and waits for the handlers. A handler
// that waits for something other than its connection must be released first:
// its owner ends that wait, then closes the network.
//
// All methods are safe for concurrent use. A Conn has one reader and one writer
// at a time.
package peernet
