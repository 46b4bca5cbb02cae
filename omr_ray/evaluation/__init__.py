"""How good a policy is: figures, protocols that produce them, and the page that shows them."""
