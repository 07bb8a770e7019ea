// Package natslink is a node's own connection to its NATS server, at the level
// of the NATS protocol.
//
// The main types are [Link], a connection with its subscriptions; [Message], a
// received message; [Outbox], which sends over a link on behalf of goroutines
// that must not block; and [User], the credentials of a connection.
//
// The package does not use nats.go, for two reasons. A message with a malformed
// header block must be refused, but nats.go delivers it without headers, which
// would turn a checked append into an unchecked one. And a handler that runs on
// the reading goroutine and never blocks can answer `busy` when a queue is
// full; a subscription of nats.go would drop the message.
//
// A link dials again when its connection breaks, for example after the process
// was suspended for a long time, and renews its subscriptions. Messages that
// are sent in between are lost, as they are for any NATS client.
//
// All methods are safe for concurrent use.
package natslink
