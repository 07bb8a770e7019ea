package peernet

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// receive does the handshake of a connection that a peer has dialed.
func (n *Network) receive(conn net.Conn) (*Conn, error) {
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	var secure *tls.Conn
	if server := n.tls.Load().server; server != nil {
		secure = tls.Server(conn, server)
		if err := secure.HandshakeContext(n.ctx); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	r := bufio.NewReaderSize(conn, readAhead)
	g, err := n.answer(conn, r, secure)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return n.established(newConn(conn, r, secure != nil, true), g, g.from), nil
}

// established fills in what the handshake has agreed on.
func (n *Network) established(c *Conn, g greeting, peer string) *Conn {
	c.network, c.purpose, c.peer, c.group = n, g.purpose, peer, g.group
	return c
}

// answer has a dialer prove that it belongs to this cluster. Only then it tells
// the dialer anything.
func (n *Network) answer(conn net.Conn, r *bufio.Reader, secure *tls.Conn) (g greeting, err error) {
	binding, err := channelBinding(secure)
	if err != nil {
		return g, err
	}
	said := newTranscript(n.opts.Key, n.opts.Cluster, binding)
	theirs, err := readOpening(r)
	if err != nil {
		return g, err
	}
	nonce := newNonce()
	if _, err := conn.Write(nonce); err != nil {
		return g, err
	}
	said.add(theirs)
	said.add(nonce)
	b, err := said.receive(r, stepGreeting, maxGreeting)
	if err != nil {
		return g, err
	}
	if g, err = decodeGreeting(b); err == nil {
		err = n.examine(g, secure)
	}
	if err != nil {
		_ = said.send(conn, stepAnswer, refusal(refusalText(err)))
		return g, err
	}
	claims, err := n.claims(g.from)
	if err != nil {
		return g, err
	}
	if err := said.send(conn, stepAnswer, welcome(claims)); err != nil {
		return g, err
	}
	if b, err = said.receive(r, stepVerdict, maxAnswer); err != nil {
		return g, err
	}
	if _, err = decodeAnswer(b); err != nil {
		return g, fmt.Errorf("by %s: %w", g.from, err)
	}
	return g, nil
}

// refusalText returns the text that tells a peer why it is refused.
func refusalText(err error) string {
	if refused, is := errors.AsType[refusedError](err); is {
		return refused.text
	}
	return err.Error()
}

// NoGroupError says that a node has no open replica of a group. A Handler's
// Accept returns it; it is logged at the debug level only.
type NoGroupError uint32

func (g NoGroupError) Error() string { return fmt.Sprintf("no replica of group %d here", uint32(g)) }

// examine returns an error if a peer that has the key has dialed the wrong node,
// is not a member, or wants something that is not here.
func (n *Network) examine(g greeting, secure *tls.Conn) error {
	if g.to != n.opts.Node {
		return refusedError{fmt.Sprintf("I am %s, not %s", n.opts.Node, g.to)}
	}
	if secure != nil {
		if err := checkPeer(secure.ConnectionState(), n.tls.Load().server.ServerName, g.from); err != nil {
			return refusedError{err.Error()}
		}
	}
	if n.opts.Member != nil {
		if err := n.opts.Member(g.from, g.id); err != nil {
			return refusedError{err.Error()}
		}
	}
	if err := n.checkClaims(g.from, g.claims); err != nil {
		return refusedError{err.Error()}
	}
	h, is := n.handlers[g.purpose]
	if !is {
		return fmt.Errorf("purpose %d is not served here", g.purpose)
	}
	if h.Accept != nil {
		return h.Accept(g.group)
	}
	return nil
}

// claims returns what this node claims to a peer.
func (n *Network) claims(peer string) ([]byte, error) {
	if n.opts.Claims == nil {
		return nil, nil
	}
	c := n.opts.Claims(peer)
	if len(c) > maxClaims {
		return nil, fmt.Errorf("this node's claims have %d bytes, the limit is %d", len(c), maxClaims)
	}
	return c, nil
}

func (n *Network) checkClaims(peer string, claims []byte) error {
	if n.opts.CheckClaims == nil {
		return nil
	}
	return n.opts.CheckClaims(peer, claims)
}

// introduce does the handshake of a connection that was dialed.
func (n *Network) introduce(ctx context.Context, conn net.Conn, g greeting) (*Conn, error) {
	dialed := conn // conn may change while this is called
	defer context.AfterFunc(ctx, func() { _ = dialed.SetDeadline(time.Unix(1, 0)) })()
	config := n.tls.Load().client
	if config != nil {
		if config.ServerName == "" {
			config = config.Clone()
			config.ServerName = g.to
		}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	r := bufio.NewReaderSize(conn, readAhead)
	if err := n.greet(conn, r, g); err != nil {
		return nil, err
	}
	return n.established(newConn(conn, r, config != nil, false), g, g.to), nil
}

// greet proves to a listener that this node belongs to its cluster, and has it
// prove the same.
func (n *Network) greet(conn net.Conn, r *bufio.Reader, g greeting) error {
	secure, _ := conn.(*tls.Conn)
	binding, err := channelBinding(secure)
	if err != nil {
		return err
	}
	if g.claims, err = n.claims(g.to); err != nil {
		return err
	}
	said := newTranscript(n.opts.Key, n.opts.Cluster, binding)
	ours, theirs := opening(newNonce()), make([]byte, nonceSize)
	if _, err := conn.Write(ours); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, theirs); err != nil {
		return hungUp(err)
	}
	said.add(ours)
	said.add(theirs)
	if err := said.send(conn, stepGreeting, g.encode()); err != nil {
		return err
	}
	b, err := said.receive(r, stepAnswer, maxAnswer)
	if errors.Is(err, errProof) {
		return errNoAnswer
	} else if err != nil {
		return hungUp(err)
	}
	claims, err := decodeAnswer(b)
	if err != nil {
		return err
	}
	if err := n.checkClaims(g.to, claims); err != nil {
		return errors.Join(fmt.Errorf("refused: %w", err), said.send(conn, stepVerdict, refusal(err.Error())))
	}
	return said.send(conn, stepVerdict, welcome(nil))
}
