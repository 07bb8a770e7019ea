package broker

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// credentials are what a connection within the process proves itself with.
type credentials struct {
	key   nkeys.KeyPair
	token string
	file  string // of NATS credentials (JWT and seed)
}

// publicKey returns the name that a user with a key has.
func publicKey(key nkeys.KeyPair) string {
	public, err := key.PublicKey()
	if err != nil {
		panic("broker: public key: " + err.Error()) // the key was made by this process
	}
	return public
}

// options are the same for nats.go.
func (c credentials) options() []nats.Option {
	switch {
	case c.file != "":
		return []nats.Option{nats.UserCredentials(c.file)}
	case c.token != "":
		return []nats.Option{nats.Token(c.token)}
	case c.key != nil:
		return []nats.Option{nats.Nkey(publicKey(c.key), c.key.Sign)}
	}
	return nil
}

// connect gives the CONNECT command.
func (c credentials) connect(name, nonce string) ([]byte, error) {
	hello := map[string]any{
		"name": "cantus " + name, "lang": "go", "version": nats.Version, "protocol": 1,
		"verbose": false, "pedantic": false, "echo": true, "headers": true, "no_responders": false,
	}
	switch {
	case c.file != "":
		jwt, sig, err := sign(c.file, nonce)
		if err != nil {
			return nil, err
		}
		hello["jwt"], hello["sig"] = jwt, sig
	case c.token != "":
		hello["auth_token"] = c.token
	case c.key != nil:
		sig, err := c.key.Sign([]byte(nonce))
		if err != nil {
			return nil, err
		}
		hello["nkey"], hello["sig"] = publicKey(c.key), base64.RawURLEncoding.EncodeToString(sig)
	}
	b, err := json.Marshal(hello)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "CONNECT %s\r\n", b), nil
}

// sign answers the server's challenge with the key of a credentials file.
func sign(file, nonce string) (jwt, signature string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", "", fmt.Errorf("read credentials: %w", err)
	}
	jwt, err = nkeys.ParseDecoratedJWT(b)
	if err != nil {
		return "", "", fmt.Errorf("credentials %s: %w", file, err)
	}
	key, err := nkeys.ParseDecoratedUserNKey(b)
	if err != nil {
		return "", "", fmt.Errorf("credentials %s: %w", file, err)
	}
	defer key.Wipe()
	raw, err := key.Sign([]byte(nonce))
	if err != nil {
		return "", "", fmt.Errorf("credentials %s: %w", file, err)
	}
	return jwt, base64.RawURLEncoding.EncodeToString(raw), nil
}

// Conn opens a connection to the node within the process, without any port. It
// has the permissions of an application: it can't publish or subscribe to what is
// the nodes' alone. The caller closes it.
func (n *Node) Conn(opts ...nats.Option) (*nats.Conn, error) {
	return n.dial(n.nats.rights.Load().app, opts...)
}

func (n *Node) dial(as credentials, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.InProcessServer(n.nats), nats.Name("in-process")}, opts...)
	return nats.Connect("", append(opts, as.options()...)...)
}
