// Package simnet is an in-memory network for simulations in a bubble of package
// testing/synctest: named hosts, and connections between them that are delayed,
// blocked, reset and cut off as a test says.
//
// It behaves as TCP does. Bytes arrive in order, after a latency that is drawn
// from a seed. What a blocked link holds back arrives once the link is
// unblocked, as if it had been sent again. A killed process resets its
// connections, and its port refuses new ones. A machine without power is
// silent: dials to it hang, and its old connections are reset once a new
// process listens there.
//
// Nothing here runs a goroutine, and writes never block: a connection buffers
// without a limit. All waiting is on channels and timers, so that a bubble's
// time advances while every goroutine waits.
//
// The latencies of each link are a sequence of their own. So they depend on the
// seed and on how many messages the link has carried, not on the order in which
// goroutines of other hosts run.
package simnet
