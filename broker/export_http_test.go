package broker

import "net/http"

// HTTPConns is how many connections the HTTP port has open at most.
const HTTPConns = httpConns

// HTTPLimits is a node's HTTP server, of which a test looks at the limits.
func HTTPLimits(n *Node) *http.Server { return n.http.server }

// HTTPOpen is how many connections of a node's HTTP port are open.
func HTTPOpen(n *Node) int { return n.http.conns.count() }

// NewHTTPServer returns a server as a node has it.
func NewHTTPServer(h http.Handler) *http.Server { return newHTTPServer(h) }
