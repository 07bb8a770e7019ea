// Package natslink is a node's own connection to its NATS server, at the level
// of the NATS protocol.
//
// Its nouns are [Link], a connection with its subscriptions; [Message], what
// it receives; [Sender], which sends over a link for goroutines that must not
// block; and [User], what a connection proves itself with.
//
// nats.go is not used here for two reasons. A message whose header block is
// malformed must be refused, and nats.go hands it over as one without headers,
// which would turn a checked append into an unchecked one. And a handler that
// runs on the reading goroutine and never blocks can answer `busy` when a
// queue is full, where a subscription would drop the message.
//
// A link dials again when its connection ends, for example after the process
// was stopped for long, and renews its subscriptions. Messages in between are
// lost, as they are for any NATS client.
//
// All methods are safe for concurrent use.
package natslink
