// Package page serves a web page about a node and its cluster: status, and
// transactions for those who may read them. It knows HTTP and browsers; what it
// shows comes from a [Source].
package page
