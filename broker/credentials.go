package broker

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// credentials are the node's own at its NATS server.
type credentials struct {
	user, password, token string
	file                  string // of NATS credentials (JWT and seed)
}

// options are the same for nats.go.
func (c credentials) options() []nats.Option {
	switch {
	case c.file != "":
		return []nats.Option{nats.UserCredentials(c.file)}
	case c.token != "":
		return []nats.Option{nats.Token(c.token)}
	case c.user != "":
		return []nats.Option{nats.UserInfo(c.user, c.password)}
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
	case c.user != "":
		hello["user"], hello["pass"] = c.user, c.password
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
