// Package cantustest runs a log within a test's process, with faults on demand.
// It is to Cantus what net/http/httptest is to net/http.
//
//	l, err := cantustest.Open(ctx, cantustest.Options{}) // in a test: New(t, …)
//	l.FailNext(1, cantustest.Append, cantustest.LoseAnswer())
//	c, err := l.Client(opts)
//	r, err := c.Append(ctx, &client.Request{Payload: []byte("hello")})
//	all, err := l.Transactions(ctx, 0)
//
// Its nouns:
//
//   - [Log] is a real node on a temporary directory and a free loopback port,
//     with a relay in front of it.
//   - [Fault] is what the relay does to a request, its answer, or a message of
//     the feed.
//
// Clients see the protocol of subjects.md under the usual prefix, answered by
// the same code as in production: conflicts, message ids, reads and cursors are
// not imitated. A test requests a fault with [Log.FailNext] or [Log.FailFunc],
// cuts connections with [Log.Disconnect] and [Log.Block], and restarts the node
// with [Log.Restart].
//
// One thing differs on the wire: the relay sends an inline status, such as the
// 204 at the end of a read, as a header "Status", because its NATS client
// cannot send the inline form. NATS clients show one or the other.
//
// All methods are safe for concurrent use, except Restart and Close.
package cantustest
