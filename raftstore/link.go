package raftstore

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
	// maxFrame bounds the payload of a frame, in bytes. It is as large as the
	// buffers of raft's transport, so that a full one is one frame, and is
	// read into its place.
	maxFrame    = 256 << 10
	frameHeader = 8
	// smallFrame is up to where copying is cheaper than writing in parts.
	smallFrame = 4 << 10
	// readAhead is the buffer in front of the frames: a small frame takes one
	// read.
	readAhead = 16 << 10
	// stallTimeout is how long the peer that dialed may stand still within a
	// frame, or not take what is sent to it.
	stallTimeout = 30 * time.Second
)

var errFrame = errors.New("malformed frame")

// link is a connection behind its preamble: a stream of bytes, carried in
// frames that are checked. One goroutine at a time reads, and one writes.
type link struct {
	net.Conn
	r       *bufio.Reader
	rest    []byte // of the last frame, not read yet
	frame   []byte // where frames go that don't fit where they are read to
	out     []byte // header, or a whole frame, on its way
	gather  bool   // write each frame at once
	inbound bool   // raft sets no deadlines

	closing sync.Once
	onClose func() // may be nil
}

// newLink makes a link of a connection whose preamble r has read.
func newLink(conn net.Conn, r *bufio.Reader, gather, inbound bool) *link {
	return &link{Conn: conn, r: r, out: make([]byte, frameHeader, 64), gather: gather, inbound: inbound}
}

// Read reads from the current frame, or the next one. The error is errFrame,
// or the connection's.
func (l *link) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		n, err := l.next(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// next reads a frame: into p if it fits there, giving its length, else into
// rest.
func (l *link) next(p []byte) (int, error) {
	size, sum, err := l.header()
	if err != nil {
		return 0, err
	}
	payload := p
	if size > len(p) {
		if cap(l.frame) < size {
			l.frame = make([]byte, max(size, smallFrame))
		}
		payload = l.frame
	}
	payload = payload[:size]
	if err := l.within(size, func() error { _, err := io.ReadFull(l.r, payload); return err }); err != nil {
		return 0, noEOF(err)
	}
	if crc32.Checksum(payload, castagnoli) != sum {
		return 0, fmt.Errorf("%w: checksum is wrong", errFrame)
	}
	if size > len(p) {
		l.rest = payload
		return 0, nil
	}
	return size, nil
}

// header waits for a frame and reads its header.
func (l *link) header() (size int, sum uint32, err error) {
	if _, err := l.r.Peek(1); err != nil {
		return 0, 0, err
	}
	var head []byte
	err = l.within(frameHeader, func() error { head, err = l.r.Peek(frameHeader); return err })
	if err != nil {
		return 0, 0, noEOF(err)
	}
	n := binary.BigEndian.Uint32(head)
	sum = binary.BigEndian.Uint32(head[4:])
	if n == 0 || n > maxFrame {
		return 0, 0, fmt.Errorf("%w: its length can't be %d", errFrame, n)
	}
	_, err = l.r.Discard(frameHeader)
	return int(n), sum, err
}

// within reads what belongs to a frame that has begun: the peer must not stand
// still in the middle of it.
func (l *link) within(size int, read func() error) error {
	if !l.inbound || l.r.Buffered() >= size {
		return read()
	}
	_ = l.SetReadDeadline(time.Now().Add(stallTimeout))
	err := read()
	_ = l.SetReadDeadline(time.Time{})
	return err
}

// noEOF says of an end within a frame that it came too early.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes p in as many frames as it takes.
func (l *link) Write(p []byte) (written int, err error) {
	if l.inbound {
		_ = l.SetWriteDeadline(time.Now().Add(stallTimeout))
	}
	for len(p) > 0 {
		piece := p[:min(len(p), maxFrame)]
		if err := l.writeFrame(piece); err != nil {
			return written, err
		}
		written += len(piece)
		p = p[len(piece):]
	}
	return written, nil
}

func (l *link) writeFrame(payload []byte) error {
	l.out = binary.BigEndian.AppendUint32(l.out[:0], uint32(len(payload)))
	l.out = binary.BigEndian.AppendUint32(l.out, crc32.Checksum(payload, castagnoli))
	if l.gather || len(payload) <= smallFrame {
		l.out = append(l.out, payload...)
		_, err := l.Conn.Write(l.out)
		return err
	}
	parts := net.Buffers{l.out, payload}
	_, err := parts.WriteTo(l.Conn)
	return err
}

// Close closes the connection, and tells who keeps count.
func (l *link) Close() error {
	err := l.Conn.Close()
	l.closing.Do(func() {
		if l.onClose != nil {
			l.onClose()
		}
	})
	return err
}

// abort breaks the connection, so that who uses the link closes it.
func (l *link) abort() { _ = l.Conn.Close() }
