package raftstore

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
func (n *Network) receive(conn net.Conn) (*link, greeting, error) {
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	var secure *tls.Conn
	if server := n.ends.Load().server; server != nil {
		secure = tls.Server(conn, server)
		if err := secure.HandshakeContext(n.ctx); err != nil {
			return nil, greeting{}, fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	r := bufio.NewReaderSize(conn, readAhead)
	g, err := n.welcome(conn, r, secure)
	if err != nil {
		return nil, g, err
	}
	_ = conn.SetDeadline(time.Time{})
	return newLink(conn, r, secure != nil, true), g, nil
}

// welcome has a dialer prove that it is of this cluster, and only then tells it
// anything.
func (n *Network) welcome(conn net.Conn, r *bufio.Reader, secure *tls.Conn) (g greeting, err error) {
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
	b, err := said.receive(r, stepGreeting, greetingMost)
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
	if b, err = said.receive(r, stepVerdict, answerMost); err != nil {
		return g, err
	}
	if _, err = decodeAnswer(b); err != nil {
		return g, fmt.Errorf("by %s: %w", g.from, err)
	}
	return g, nil
}

// refusalText is what a member is told.
func refusalText(err error) string {
	if refused, is := errors.AsType[refusedError](err); is {
		return refused.text
	}
	return err.Error()
}

// noGroupError is met with a group that is not open here.
type noGroupError uint32

func (g noGroupError) Error() string { return fmt.Sprintf("no replica of group %d here", uint32(g)) }

// examine refuses a peer that has the key and is in the wrong place, or no
// member.
func (n *Network) examine(g greeting, secure *tls.Conn) error {
	if g.to != n.opts.Node {
		return refusedError{fmt.Sprintf("I am %s, not %s", n.opts.Node, g.to)}
	}
	if secure != nil {
		if err := checkPeer(secure.ConnectionState(), n.ends.Load().server.ServerName, g.from); err != nil {
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
	if g.kind != kindBeats && g.kind != kindGreet && n.endpoint(g.group) == nil {
		return noGroupError(g.group)
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
		return nil, fmt.Errorf("this node's claims have %d bytes: they can have %d", len(c), maxClaims)
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
func (n *Network) introduce(ctx context.Context, conn net.Conn, g greeting) (*link, error) {
	dialed := conn // conn may become another while this is called
	defer context.AfterFunc(ctx, func() { _ = dialed.SetDeadline(time.Unix(1, 0)) })()
	config := n.ends.Load().client
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
	return newLink(conn, r, config != nil, false), nil
}

// greet proves to a listener that this node is of its cluster, and has it prove
// the same.
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
		return noHangUp(err)
	}
	said.add(ours)
	said.add(theirs)
	if err := said.send(conn, stepGreeting, g.encode()); err != nil {
		return err
	}
	b, err := said.receive(r, stepAnswer, answerMost)
	if errors.Is(err, errProof) {
		return errNoAnswer
	} else if err != nil {
		return noHangUp(err)
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
