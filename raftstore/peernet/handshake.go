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

// serverHandshake does the handshake of an inbound connection.
func (n *Network) serverHandshake(conn net.Conn) (*Conn, error) {
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	var secure *tls.Conn
	if server := n.tls.Load().server; server != nil {
		secure = tls.Server(conn, server)
		if err := secure.HandshakeContext(n.ctx); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	r := bufio.NewReaderSize(conn, readBuffer)
	g, err := n.authenticateDialer(conn, r, secure)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return n.established(newConn(conn, r, secure != nil, true), g, g.from), nil
}

// established sets the fields of a Conn that the handshake has determined.
func (n *Network) established(c *Conn, g greeting, peer string) *Conn {
	c.network, c.purpose, c.peer, c.group = n, g.purpose, peer, g.group
	return c
}

// authenticateDialer is the listener's part of the handshake messages. Until
// the dialer has proved that it belongs to this cluster, it sends nothing but a
// nonce.
func (n *Network) authenticateDialer(conn net.Conn, r *bufio.Reader, secure *tls.Conn) (g greeting, err error) {
	binding, err := channelBinding(secure)
	if err != nil {
		return g, err
	}
	tr := newTranscript(n.opts.Key, n.opts.Cluster, binding)
	theirs, err := readOpening(r)
	if err != nil {
		return g, err
	}
	nonce := newNonce()
	if _, err := conn.Write(nonce); err != nil {
		return g, err
	}
	tr.add(theirs)
	tr.add(nonce)
	b, err := tr.receive(r, stepGreeting, maxGreeting)
	if err != nil {
		return g, err
	}
	if g, err = decodeGreeting(b); err == nil {
		err = n.checkGreeting(g, secure)
	}
	if err != nil {
		_ = tr.send(conn, stepAnswer, encodeRefusal(refusalText(err)))
		return g, err
	}
	payload, err := n.payload(g.from)
	if err != nil {
		return g, err
	}
	if err := tr.send(conn, stepAnswer, encodeWelcome(payload)); err != nil {
		return g, err
	}
	if b, err = tr.receive(r, stepConfirmation, maxAnswer); err != nil {
		return g, err
	}
	if _, err = decodeAnswer(b); err != nil {
		return g, fmt.Errorf("%s: %w", g.from, err)
	}
	return g, nil
}

// refusalText returns the reason for a refusal, as the peer receives it.
func refusalText(err error) string {
	if refused, ok := errors.AsType[refusedError](err); ok {
		return refused.text
	}
	return err.Error()
}

// NoGroupError is returned by a Handler's Accept if the node has no open
// replica of the group. The network logs it at the debug level.
type NoGroupError uint32

func (g NoGroupError) Error() string { return fmt.Sprintf("no replica of group %d here", uint32(g)) }

// checkGreeting returns an error if a peer that has the key dialed the wrong
// node, is not a member, has an unacceptable payload, or asks for a purpose or
// group that this node does not serve.
func (n *Network) checkGreeting(g greeting, secure *tls.Conn) error {
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
	if err := n.checkPayload(g.from, g.payload); err != nil {
		return refusedError{err.Error()}
	}
	h, ok := n.handlers[g.purpose]
	if !ok {
		return fmt.Errorf("purpose %d is not served here", g.purpose)
	}
	if h.Accept != nil {
		return h.Accept(g.group)
	}
	return nil
}

// payload returns this node's payload to a peer.
func (n *Network) payload(peer string) ([]byte, error) {
	if n.opts.Payload == nil {
		return nil, nil
	}
	c := n.opts.Payload(peer)
	if len(c) > maxPayload {
		return nil, fmt.Errorf("this node's payload has %d bytes, the limit is %d", len(c), maxPayload)
	}
	return c, nil
}

func (n *Network) checkPayload(peer string, payload []byte) error {
	if n.opts.CheckPayload == nil {
		return nil
	}
	return n.opts.CheckPayload(peer, payload)
}

// clientHandshake does the handshake of an outbound connection.
func (n *Network) clientHandshake(ctx context.Context, conn net.Conn, g greeting) (*Conn, error) {
	dialed := conn // conn is assigned below, while AfterFunc's function may run
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
	r := bufio.NewReaderSize(conn, readBuffer)
	if err := n.authenticateListener(conn, r, g); err != nil {
		return nil, err
	}
	return n.established(newConn(conn, r, config != nil, false), g, g.to), nil
}

// authenticateListener is the dialer's part of the handshake messages. It
// proves to the listener that this node belongs to the cluster, and checks the
// listener's proof of the same.
func (n *Network) authenticateListener(conn net.Conn, r *bufio.Reader, g greeting) error {
	secure, _ := conn.(*tls.Conn)
	binding, err := channelBinding(secure)
	if err != nil {
		return err
	}
	if g.payload, err = n.payload(g.to); err != nil {
		return err
	}
	tr := newTranscript(n.opts.Key, n.opts.Cluster, binding)
	ours, theirs := encodeOpening(newNonce()), make([]byte, nonceSize)
	if _, err := conn.Write(ours); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, theirs); err != nil {
		return peerClosed(err)
	}
	tr.add(ours)
	tr.add(theirs)
	if err := tr.send(conn, stepGreeting, g.encode()); err != nil {
		return err
	}
	b, err := tr.receive(r, stepAnswer, maxAnswer)
	if errors.Is(err, errProof) {
		return errNoAnswer
	} else if err != nil {
		return peerClosed(err)
	}
	payload, err := decodeAnswer(b)
	if err != nil {
		return err
	}
	if err := n.checkPayload(g.to, payload); err != nil {
		return errors.Join(fmt.Errorf("refused: %w", err), tr.send(conn, stepConfirmation, encodeRefusal(err.Error())))
	}
	return tr.send(conn, stepConfirmation, encodeWelcome(nil))
}
