// Package cantustest runs a log within a test's process, with faults on demand:
// it is to Cantus what net/http/httptest is to net/http.
//
//	l, err := cantustest.Open(ctx, cantustest.Options{}) // in a test: New(t, …)
//	l.FailNext(1, cantustest.Append, cantustest.LoseAnswer())
//	c, err := l.Client(opts)
//	r, err := c.Append(ctx, &client.Tx{Payload: []byte("hello")})
//	all, err := l.Transactions(ctx, 0)
//
// Its nouns:
//
//   - [Log], a real node on a directory of its own and a free loopback port, with a
//     relay in front of it.
//   - [Fault], what the relay does to a request, its answer, or a message of the
//     feed.
//
// What clients see is the protocol of subjects.md under the usual prefix,
// answered by the same code as in production: conflicts, message ids, reads and
// cursors need no imitation. A test asks for a fault with [Log.FailNext]
// or [Log.FailFunc], cuts connections with [Log.Disconnect] and [Log.Block], and
// restarts the node with [Log.Restart].
//
// One thing differs on the wire: the relay sends an inline status, such as the
// 204 at the end of a read, as a header "Status", because its NATS client can't
// send the other form. Clients show one or the other.
//
// All methods are safe for concurrent use, except Restart and Close.
package cantustest
