package peernet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// MaxFrame bounds the payload of a frame, in bytes. It is the size of the
	// buffers of hashicorp/raft's transport, so that a full buffer is one
	// frame, which the peer reads into its buffer without a copy.
	MaxFrame    = 256 << 10
	frameHeader = 8
	// smallFrame is the size up to which it is cheaper to copy a payload behind
	// its header, and write both at once, than to use writev.
	smallFrame = 4 << 10
	// readBuffer is the size of the read buffer. A small frame takes one read.
	readBuffer = 16 << 10
	// stallTimeout is how long a peer that dialed may take to send the rest of
	// a frame, or to read what is sent to it.
	stallTimeout = 30 * time.Second
)

var errFrame = errors.New("malformed frame")

// Conn is a connection after its handshake. It carries a stream of bytes in
// frames with checksums. A frame is
//
//	0     4  length of the payload, 1 to 262,144, big-endian
//	4     4  CRC-32C of the payload, big-endian
//	8        payload
//
// A frame's checksum is verified before any of its bytes is returned. At any
// time at most one goroutine reads and one writes. The owner of the connection
// closes it.
type Conn struct {
	net.Conn
	r        *bufio.Reader
	rest     []byte // of the current frame, not returned by Read yet
	frame    []byte // holds a frame that is larger than the caller's buffer
	out      []byte // the header, or a whole frame, to be written
	coalesce bool   // write header and payload in one call, however large
	inbound  bool   // dialed by the peer: its users set no deadlines

	purpose Purpose
	peer    string // the node at the other end
	group   uint32

	closing sync.Once
	network *Network // tracks the connection until it is closed; nil in tests
	onClose func()   // may be nil
}

// newConn returns a Conn over a connection whose handshake is done. r is the
// reader that the handshake used: it may hold bytes of the first frame.
func newConn(conn net.Conn, r *bufio.Reader, coalesce, inbound bool) *Conn {
	return &Conn{Conn: conn, r: r, out: make([]byte, frameHeader, 64), coalesce: coalesce, inbound: inbound}
}

// Peer returns the name of the node at the other end.
func (c *Conn) Peer() string { return c.peer }

// Group returns the group that the connection belongs to, 0 if its purpose has
// no groups.
func (c *Conn) Group() uint32 { return c.group }

// OnClose arranges for f to be called once, when the owner closes the
// connection. It must be called before the connection is passed to another
// goroutine.
func (c *Conn) OnClose(f func()) { c.onClose = f }

// Read reads from the current frame, or from the next one. The error wraps
// errFrame, or is the connection's.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		n, err := c.next(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next reads a frame. If the frame fits into p, next reads it there and returns
// its length. Otherwise it sets rest to the frame and returns 0.
func (c *Conn) next(p []byte) (int, error) {
	size, sum, err := c.header()
	if err != nil {
		return 0, err
	}
	payload := p
	if size > len(p) {
		if cap(c.frame) < size {
			c.frame = make([]byte, max(size, smallFrame))
		}
		payload = c.frame
	}
	payload = payload[:size]
	if err := c.finishRead(size, func() error { _, err := io.ReadFull(c.r, payload); return err }); err != nil {
		return 0, unexpectedEOF(err)
	}
	if crc32.Checksum(payload, castagnoli) != sum {
		return 0, fmt.Errorf("%w: checksum is wrong", errFrame)
	}
	if size > len(p) {
		c.rest = payload
		return 0, nil
	}
	return size, nil
}

// header waits for a frame and reads its header.
func (c *Conn) header() (size int, sum uint32, err error) {
	if _, err := c.r.Peek(1); err != nil {
		return 0, 0, err
	}
	var head []byte
	err = c.finishRead(frameHeader, func() error { head, err = c.r.Peek(frameHeader); return err })
	if err != nil {
		return 0, 0, unexpectedEOF(err)
	}
	n := binary.BigEndian.Uint32(head)
	sum = binary.BigEndian.Uint32(head[4:])
	if n == 0 || n > MaxFrame {
		return 0, 0, fmt.Errorf("%w: its length can't be %d", errFrame, n)
	}
	_, err = c.r.Discard(frameHeader)
	return int(n), sum, err
}

// finishRead calls read, which reads size more bytes of a frame that has begun.
// On an inbound connection it sets a deadline, unless they are buffered: the
// peer must not stall within a frame.
func (c *Conn) finishRead(size int, read func() error) error {
	if !c.inbound || c.r.Buffered() >= size {
		return read()
	}
	_ = c.SetReadDeadline(time.Now().Add(stallTimeout))
	err := read()
	_ = c.SetReadDeadline(time.Time{})
	return err
}

// unexpectedEOF maps io.EOF, which ended a frame early, to io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes p, in several frames if it is longer than MaxFrame.
func (c *Conn) Write(p []byte) (written int, err error) {
	if c.inbound {
		_ = c.SetWriteDeadline(time.Now().Add(stallTimeout))
	}
	for len(p) > 0 {
		piece := p[:min(len(p), MaxFrame)]
		if err := c.writeFrame(piece); err != nil {
			return written, err
		}
		written += len(piece)
		p = p[len(piece):]
	}
	return written, nil
}

func (c *Conn) writeFrame(payload []byte) error {
	c.out = binary.BigEndian.AppendUint32(c.out[:0], uint32(len(payload)))
	c.out = binary.BigEndian.AppendUint32(c.out, crc32.Checksum(payload, castagnoli))
	if c.coalesce || len(payload) <= smallFrame {
		c.out = append(c.out, payload...)
		_, err := c.Conn.Write(c.out)
		return err
	}
	parts := net.Buffers{c.out, payload}
	_, err := parts.WriteTo(c.Conn)
	return err
}

// Close closes the connection, and calls the function set by OnClose.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.closing.Do(func() {
		if c.network != nil {
			c.network.untrack(c)
		}
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

// Abort breaks the connection: its owner's reads and writes fail, and the owner
// then closes it. Any goroutine may call Abort.
func (c *Conn) Abort() { _ = c.Conn.Close() }
